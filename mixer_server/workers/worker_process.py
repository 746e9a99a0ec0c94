"""One worker process as its parent sees it: started, watched, and started again when it ends."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mixer_server.workers.worker_link import MAX_REPORT_BYTES, Report, decode_report

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0
_KILL_S = 10.0  # until the kernel has taken back the memory of a process that was killed

# Else `python -m` finds a services.py of the folder it is started in before ours.
_ENVIRONMENT = {"PYTHONSAFEPATH": "1"}


def next_pause(previous_s: float, served_s: float) -> float:
    """Say how long to wait before a worker is started again, in seconds.

    Args:
        previous_s: the pause before its last start; 0 before the first one.
        served_s: how long it was ready since then.
    """
    if served_s >= _HEALTHY_S or not previous_s:
        return _FIRST_PAUSE_S
    return min(2 * previous_s, _LONGEST_PAUSE_S)


def describe_status(status: int) -> str:
    """Say how a process ended, from the status that `subprocess` gives."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerEnd:
    """How a worker ended."""

    status: int
    """Its exit status; minus the number of the signal that killed it."""
    was_ready: bool
    """Whether it had begun to serve."""
    refusal: str
    """Why it could not start, if it said so."""

    @property
    def is_clean(self) -> bool:
        """Whether it answered all that it had accepted."""
        return self.status == 0 or (self.status == -signal.SIGTERM and not self.was_ready)


class Worker:
    """A process of a session of its own, so that Ctrl-C on the terminal reaches its parent alone.

    For one thread; what has no verb in its name may be read by any.
    """

    def __init__(
        self,
        index: int,
        *,
        args: Sequence[str],
        environment: Mapping[str, str],
        on_restart: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Describe a worker.

        Args:
            index: its number, from 0.
            args: for Python; the descriptor of a `ParentLink` is added.
            environment: variables it has beside those of this process.
            on_restart: is called whenever it is started again.
            clock: seconds that only grow.
        """
        self.index = index
        self.process_id: int | None = None
        """Of the process that runs; None between two."""
        self.report: Report | None = None
        """What it said when it became ready; None unless it is."""
        self.end: WorkerEnd | None = None
        """How the last process ended; None as long as none did."""
        self.num_restarts = 0
        """How often it was started again."""
        self._args = args
        self._environment = environment
        self._on_restart = on_restart
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._received = bytearray()
        self._refusal = ""
        self._ready_at_s = 0.0
        self._pause_s = 0.0
        self._restart_at_s = 0.0

    @property
    def obstacle(self) -> str | None:
        """Why it is not ready; None when it has said that it is."""
        if self.report is not None:
            return None
        if self.process_id is not None or self.end is None:
            return "starting"
        return f"{describe_status(self.end.status)}, starts again soon"

    def start(self) -> None:
        """Start the process, which becomes ready later.

        Raises:
            OSError: if the system has no room for it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, *self._args, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # the standard output of this process is for its own ready line
                    env={**os.environ, **_ENVIRONMENT, **self._environment},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._process, self._link = process, ours
        self._received.clear()
        self._refusal = ""
        self.process_id = process.pid
        log.info("worker_started", extra={"worker": self.index, "pid": process.pid})

    def look(self) -> None:
        """Notice what it said, and whether it ended."""
        if self._process is None:
            return
        status = self._process.poll()  # asked before the report is read, so that none is missed
        report = self._read()
        if report is not None and report.refusal:
            self._refusal = report.refusal
        elif report is not None:
            self.report, self._ready_at_s = report, self._clock()
            log.info("worker_ready", extra={"worker": self.index, "pid": self.process_id})
        if status is not None:
            self._note_end(status)

    def restart_when_due(self) -> None:
        """Start it again if it ended long enough ago."""
        if self._process is not None or self._clock() < self._restart_at_s:
            return
        self.num_restarts += 1
        self._on_restart()
        try:
            self.start()
        except OSError as error:  # no memory or no room for a process, which may be otherwise later
            log.warning("worker_not_started", extra={"worker": self.index, "reason": str(error)})
            self._plan_restart(served_s=0.0)

    def terminate(self) -> None:
        """Ask it to answer what it accepted, and to end."""
        if self._process is not None:
            self._process.terminate()

    def join(self, timeout_s: float) -> bool:
        """Wait for its end, and insist after `timeout_s`; False unless it ended by itself in good order.

        One that does not run, since it ended before, is in good order: what it left undone was told then.
        """
        if self._process is None:
            return True
        if not _wait(self._process, timeout_s):
            log.error("worker_killed", extra={"worker": self.index, "pid": self.process_id, "waited_s": timeout_s})
            self._process.kill()
            if not _wait(self._process, _KILL_S):  # a driver holds it
                log.error("worker_stuck", extra={"worker": self.index, "pid": self.process_id})
                return False
        self.look()
        assert self.end is not None, "it ended"
        return self.end.is_clean

    def _read(self) -> Report | None:
        assert self._link is not None, "it runs"
        while len(self._received) < MAX_REPORT_BYTES:
            try:
                received = self._link.recv(65536)
            except (BlockingIOError, ConnectionError):
                break
            if not received:
                break
            self._received += received
        line, newline, rest = self._received.partition(b"\n")
        self._received = rest if newline else line
        return decode_report(bytes(line)) if newline else None

    def _note_end(self, status: int) -> None:
        assert self._link is not None, "it ran"
        served_s = self._clock() - self._ready_at_s if self.report else 0.0
        self.end = WorkerEnd(status=status, was_ready=self.report is not None, refusal=self._refusal)
        log.log(
            logging.INFO if self.end.is_clean else logging.WARNING,
            "worker_ended",
            extra={"worker": self.index, "pid": self.process_id, "status": status, "reason": self._refusal},
        )
        self._link.close()
        self._process = self._link = self.process_id = self.report = None
        self._plan_restart(served_s)

    def _plan_restart(self, served_s: float) -> None:
        self._pause_s = next_pause(self._pause_s, served_s)
        self._restart_at_s = self._clock() + self._pause_s


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return True
