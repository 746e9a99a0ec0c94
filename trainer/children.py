"""Child processes of a program that starts others: logged, bounded in time, and never left behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services.cli import ProgramFailed

_STOP_GRACE_S = 40.0  # torchrun gives its workers 30 s
_POLL_S = 0.1
_TAIL_LINES = 12

_ENVIRONMENT = {
    # Several processes share the cores: threads of small layers that wait for each other on a busy core took 38 s for
    # an epoch of digits, one thread 2 s.
    "OMP_NUM_THREADS": "1",
    # Else `python -m` finds a services.py or trainer/ of the folder it is started in before ours.
    "PYTHONSAFEPATH": "1",
    "PYTHONUNBUFFERED": "1",
}


class ChildFailed(ProgramFailed):
    """A child ended with an error, or took too long."""


class Child:
    """One process in a session of its own, so that Ctrl-C on the terminal reaches only its parent."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    def wait(self, timeout_s: float, on_line: Callable[[str], None]) -> None:
        """Wait for success, passing on each line of output as it comes.

        Raises:
            ChildFailed: with the end of its log.
        """
        for line in self._lines(timeout_s):
            on_line(line)
        if self._process.returncode != 0:
            raise self._ended()

    @property
    def process_id(self) -> int:
        """Of the process, and of the session it leads."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether `wait` would return at once."""
        return self._process.poll() is not None

    def wait_for_line(self, start: str, timeout_s: float) -> str:
        """Wait until it prints a line that starts so.

        Raises:
            ChildFailed: if it ends before, or does not within `timeout_s`.
        """
        for line in self._lines(timeout_s):
            if line.startswith(start):
                return line
        raise ChildFailed(f"{self._what()} ended without saying {start!r}{self._tail()}")

    def check_running(self) -> None:
        """Refuse that it ended.

        Raises:
            ChildFailed: with the end of its log.
        """
        if self.has_ended:
            raise self._ended()

    def stop(self) -> int:
        """Ask it to end, insist after a while or when interrupted again, and return its status."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            return self._kill()
        except KeyboardInterrupt:
            self._kill()
            raise

    def _kill(self) -> int:
        # torchrun puts its workers into sessions of their own, where the signal to its group does not reach them.
        for process_id in (*_descendants(self._process.pid), self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        return self._process.wait()

    def _lines(self, timeout_s: float) -> Iterator[str]:
        deadline = time.monotonic() + timeout_s
        with self._log.open(errors="replace") as output:
            rest = ""
            while True:
                has_ended = self._process.poll() is not None  # asked before the last read, so that nothing is missed
                *lines, rest = (rest + output.read()).split("\n")
                yield from lines
                if has_ended:
                    return
                if time.monotonic() > deadline:
                    raise ChildFailed(f"{self._what()} took longer than {timeout_s:.0f} s{self._tail()}")
                time.sleep(_POLL_S)

    def _ended(self) -> ChildFailed:
        return ChildFailed(f"{self._what()} ended with status {self._process.returncode}{self._tail()}")

    def _what(self) -> str:
        return f"`{self._log.stem}`"

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        # Above the boxes that torchrun draws around the status of its workers stands the sentence that explains it.
        errors = list(dict.fromkeys(line for line in lines if line.startswith("error: ")))
        return "; its log says\n  " + "\n  ".join(errors or lines[-_TAIL_LINES:]) + f"\n(whole log: {self._log})"


@contextmanager
def start_child(module: str, args: Sequence[str], log: Path) -> Iterator[Child]:
    """Run `python -m MODULE ARGS` with its output in a file; it is gone when the block ends, however that happens."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **_ENVIRONMENT},
            start_new_session=True,
        )
        child = Child(process, log)
        try:
            yield child
        finally:
            child.stop()


def unwind_on_signals() -> None:
    """Let SIGTERM and a closed terminal unwind the stack as Ctrl-C does, which stops the children."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup leaves SIGHUP
            signal.signal(number, signal.default_int_handler)


def _descendants(process_id: int) -> list[int]:
    """Find the living children of a process, their children and so on (Linux; elsewhere none are found)."""
    children: list[int] = []
    for path in Path(f"/proc/{process_id}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            children += map(int, path.read_text().split())
    return [found for child in children for found in (*_descendants(child), child)]
