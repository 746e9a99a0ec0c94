"""What goes wrong around a training run: processes killed and held up, servers that err, shards cut, disks filled."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch
from urllib.request import urlopen

import grpc
import pytest
from scripted_server import ScriptedServicer, predict_with
from serving import WAIT_S, tiny_mixer
from training import page_value, processes_of, survivors, torchrun

from samix.errors import MixerOverloaded
from samix.mixer.v1 import mixer_pb2 as pb
from samix.status import to_status
from trainer.children import ChildFailed, start_child

RUN_MARK = "FAULTS_TEST_RUN"
"""Variable in the environment of all processes of a run, also of those whose command line does not tell."""


class When:
    """Hears a log, and acts once: when some line has held the mark, each of them where there are several."""

    def __init__(self, marks: str | tuple[str, ...], act: Callable[[], object]) -> None:
        self._missing = {marks} if isinstance(marks, str) else set(marks)
        self._act = act

    def __call__(self, line: str) -> None:
        """Hear a line."""
        heard = {mark for mark in self._missing if mark in line}
        self._missing -= heard
        if heard and not self._missing:
            self._act()


BOTH_LOST = (" mixer_lost rank=0 ", " mixer_lost rank=1 ")
"""Marks: both ranks have noticed that the mixer does not answer."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    status: int
    """Of torchrun."""
    logs: list[str]
    """What each rank wrote to stderr."""

    @property
    def errors(self) -> list[list[str]]:
        """Of each rank, the sentences that say why it failed."""
        return [[line for line in log.splitlines() if line.startswith("error: ")] for log in self.logs]

    def count(self, event: str) -> list[int]:
        """Count an event in the log of each rank."""
        return [log.count(f" {event} ") for log in self.logs]


def run_ranks(
    flags: Sequence[str], folder: Path, *hears: Callable[[str], None], limit_s: float, ranks: int = 2
) -> Ended:
    """Run ranks of the trainer until they end.

    Args:
        flags: of the trainer.
        folder: a new one for logs; also the mark of the run's processes.
        hears: told each line of the log as it comes.
        limit_s: seconds.
        ranks: how many.

    Raises:
        ChildFailed: if it takes longer.
    """

    def hear(line: str) -> None:
        for one in hears:
            one(line)

    folder.mkdir()
    launch = ["--tee", "3", "--log-dir", str(folder), *torchrun(*flags, ranks=ranks)]
    with (
        patch.dict(os.environ, {RUN_MARK: str(folder)}),
        start_child("torch.distributed.run", launch, folder / "torchrun.log") as child,
    ):
        try:
            child.wait(limit_s, hear)
        except ChildFailed:
            if not child.has_ended:
                raise
        status = child.stop()
    logs = [next(folder.glob(f"*/attempt_0/{rank}/stderr.log")).read_text() for rank in range(ranks)]
    return Ended(status=status, logs=logs)


def remains_of(folder: Path) -> dict[int, str]:
    """Find the processes of a run that do not end by themselves, workers of its loaders included."""
    return survivors("", f"{RUN_MARK}={folder}")


def kill_run(word: str, rank: int | None = None) -> int:
    """Kill with -9 a run whose command lines hold a word, torchrun included, or one rank of it; returns how many."""
    environment = "" if rank is None else f"RANK={rank}"
    found = processes_of(word, environment)
    for process_id in found:
        os.kill(process_id, signal.SIGKILL)
    return len(found)


def launcher(word: str) -> int:
    """Find the torchrun whose command line holds a word."""
    (process_id,) = (number for number, command in processes_of(word).items() if "torch.distributed.run" in command)
    return process_id


class Brake:
    """Holds up a process by SIGSTOP. Close it: it then runs again."""

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None

    def hold(self, seconds: float) -> None:
        """Stop it for a while."""
        self._start(lambda: self._stop_for(seconds))

    def slow_down(self, share: float, period_s: float = 0.1) -> None:
        """Let it run for a share of the time only."""
        self._start(lambda: self._run_for(share, period_s))

    def close(self) -> None:
        """Let it run."""
        self._is_closed.set()
        if self._thread is not None:
            self._thread.join()

    def _start(self, target: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=target)
        self._thread.start()

    def _stop_for(self, seconds: float) -> None:
        os.kill(self._process_id, signal.SIGSTOP)
        self._is_closed.wait(seconds)
        os.kill(self._process_id, signal.SIGCONT)

    def _run_for(self, share: float, period_s: float) -> None:
        while not self._is_closed.wait(share * period_s):
            self._stop_for((1 - share) * period_s)


@dataclass(frozen=True)
class ServerProcess:
    """A mixer server in a process of its own."""

    process_id: int
    grpc: str
    """Its address."""
    metrics: str
    """That of its page for Prometheus."""
    brake: Brake

    def kill(self) -> None:
        """End it without a word."""
        os.kill(self.process_id, signal.SIGKILL)

    def images_mixed(self) -> float:
        """Ask it how many images it mixed."""
        with urlopen(f"http://{self.metrics}/metrics", timeout=WAIT_S) as page:
            return page_value(page.read().decode(), "mixer_images_total")


@contextmanager
def server_process(artefact: Path, folder: Path, *, port: str = "0") -> Iterator[ServerProcess]:
    """Serve an artefact from a process whose log goes to a folder, on a port for gRPC; "0" is any."""
    flags = ["--mixers", str(artefact), "--num-threads", "1", "--http-port", "0", "--metrics-port", "0"]
    log = folder / f"server-{port}.log"
    with start_child("mixer_server", [*flags, "--grpc-port", port], log) as child:
        words = child.wait_for_line("ready ", WAIT_S).split()[1:]
        addresses = dict(word.split("=", 1) for word in words)
        (process_id,) = processes_of(f"mixer_server --mixers {artefact}")
        with closing(Brake(process_id)) as brake:
            yield ServerProcess(process_id, addresses["grpc"], addresses["metrics"], brake)


Fault = Callable[[grpc.ServicerContext], bytes]


def aborting(code: grpc.StatusCode) -> Fault:
    """End calls by a status."""

    def fault(context: grpc.ServicerContext) -> bytes:
        context.abort(code, "as told")

    return fault


def overloaded(context: grpc.ServicerContext) -> bytes:
    """Ask callers to come back later."""
    context.abort_with_status(to_status(MixerOverloaded("as told", 0.2)))
    raise AssertionError  # aborting raises


def garbage(_context: grpc.ServicerContext) -> bytes:
    """Answer with bytes that are no message."""
    return b"\xff" * 100


def empty(_context: grpc.ServicerContext) -> bytes:
    """Answer with a message that holds nothing."""
    return b""


class ErringMixer(ScriptedServicer):
    """Mixes, unless a fault is set."""

    fault: Fault | None = None

    def Mix(self, request: pb.MixRequest, context: grpc.ServicerContext) -> bytes:  # type: ignore[override]
        if self.fault is not None:
            return self.fault(context)
        return super().Mix(request, context).SerializeToString()

    def _info(self) -> pb.MixerInfo:
        info = super()._info()
        info.MergeFrom(pb.MixerInfo(min_side=1, max_side=64, stride=1, max_tokens=4096, max_images=64))
        return info


@contextmanager
def erring_server() -> Iterator[tuple[ErringMixer, str]]:
    """Run a server; yields its servicer and the address."""
    servicer = ErringMixer(predict_with(tiny_mixer()))
    methods = {
        # The generated code would insist on a message where garbage is wanted.
        "Mix": grpc.unary_unary_rpc_method_handler(servicer.Mix, pb.MixRequest.FromString),
        "GetMixer": grpc.unary_unary_rpc_method_handler(
            servicer.GetMixer, pb.GetMixerRequest.FromString, pb.GetMixerResponse.SerializeToString
        ),
    }
    with futures.ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads, options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("samix.mixer.v1.MixerService", methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield servicer, f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk of so many MB at a new folder, or skip where that is not allowed."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a disk of limited size: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill_disk(filler: Path) -> None:
    """Leave no free byte on the disk of a file that is made."""
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return
