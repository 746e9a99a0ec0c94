"""Servers that are put under pressure: started with any flags, looked at from outside, killed and started again."""

import os
import signal
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.machine import bind_child
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer
from trainer.children import Child, start_child

_READY_S = 120.0
_FETCH_S = 10.0

Flags = Mapping[str, object]
"""Of `samix serve`, by name without dashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a process has of the machine."""

    resident_mib: float
    """Resident memory, MiB."""
    own_mib: float
    """What of it is the process's own, MiB: pages of libraries come and go as the system likes."""
    peak_mib: float
    """Most resident memory since it began, MiB."""
    num_threads: int
    """Threads."""
    num_descriptors: int
    """Open files and sockets."""

    def __str__(self) -> str:
        return (
            f"{self.resident_mib:,.1f} MiB resident, {self.own_mib:,.1f} its own, "
            f"{self.num_threads} threads, {self.num_descriptors} descriptors"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Running:
    """A server that is ready."""

    child: Child
    """Its process."""
    addresses: Mapping[str, str]
    """Where it listens: grpc, http, metrics."""

    @property
    def target(self) -> str:
        """Address for clients."""
        return self.addresses["grpc"]

    def usage(self) -> Usage:
        """Look at the process.

        Raises:
            ChildFailed: if it has ended.
        """
        self.child.check_running()
        process = Path(f"/proc/{self.child.process_id}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return Usage(
            resident_mib=_kib(status["VmRSS"]) / 1024,
            own_mib=_kib(status["RssAnon"]) / 1024,
            peak_mib=_kib(status["VmHWM"]) / 1024,
            num_threads=int(status["Threads"]),
            num_descriptors=len(list((process / "fd").iterdir())),
        )

    def metric(self, name: str, **labels: str) -> float:
        """Sum the samples of one name, of these labels, on its page."""
        with urllib.request.urlopen(f"http://{self.addresses['metrics']}/metrics", timeout=_FETCH_S) as page:
            text = page.read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@contextmanager
def artefact_of(mixer: FrozenMixer) -> Iterator[Path]:
    """Write a mixer to a file that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="samix-bench-") as name:
        path = Path(name) / f"{mixer.name}.safetensors"
        save_artefact(path, mixer, {"data": "none"})
        yield path


@contextmanager
def running_server(artefact: Path, core: int | None, log: Path, flags: Flags | None = None) -> Iterator[Running]:
    """Run `samix serve` on one core; it is gone after the block.

    Raises:
        ChildFailed: if it does not get ready.
    """
    ports = {"grpc-port": 0, "http-port": 0, "metrics-port": 0}
    settings = {"mixers": artefact, "device": "cpu", "num-threads": 1, **ports, **(flags or {})}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with ExitStack() as opened:
        child = opened.enter_context(start_child("samix", ["serve", *words], log))
        bind_child(child.process_id, core)
        line = child.wait_for_line("ready ", _READY_S)
        yield Running(child=child, addresses=dict(part.split("=", 1) for part in line.split()[1:]))


class Replica:
    """A server that is killed and comes back at the same port. `close` it."""

    def __init__(self, artefact: Path, core: int | None, log: Path) -> None:
        self.num_kills = 0
        """How often it was killed."""
        self._artefact = artefact
        self._core = core
        self._log = log
        self._port = 0
        self._opened = ExitStack()
        self._running: Running | None = None

    @property
    def target(self) -> str:
        """Address for clients, the same in all its lives."""
        assert self._running is not None
        return self._running.target

    def start(self) -> None:
        """Start it, and wait until it is ready.

        Raises:
            ChildFailed: if it does not get ready.
        """
        server = running_server(self._artefact, self._core, self._log, {"grpc-port": self._port})
        self._running = self._opened.enter_context(server)
        self._port = int(self._running.target.rpartition(":")[2])

    def kill(self) -> None:
        """End it at once, as a crash would."""
        assert self._running is not None
        self._running.child.check_running()
        os.kill(self._running.child.process_id, signal.SIGKILL)
        self._opened.close()  # waits for its end
        self.num_kills += 1

    def close(self) -> None:
        """End it."""
        self._opened.close()


def _kib(field: str) -> int:
    return int(field.split()[0])
