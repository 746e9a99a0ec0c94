"""A mixer server in a process of its own: what it holds, what it logs, and how it ends."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families
from serving import WAIT_S

_HELD = (
    *("mixer_requests_in_flight", "mixer_request_memory_bytes", "mixer_streams_open"),
    *("mixer_queue_requests", "mixer_queue_bytes"),
)
"""What a server that nobody asks anything has none of."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a process holds."""

    resident_bytes: int
    """Memory."""
    peak_bytes: int
    """Most memory since the last `ChildServer.forget_peak`."""
    threads: int
    """Threads."""
    descriptors: int
    """Open files and sockets."""


@dataclass(frozen=True, kw_only=True)
class ChildServer:
    """A running `python -m mixer_server`."""

    process: subprocess.Popen[str]
    """Itself."""
    addresses: dict[str, str]
    """Where it listens: grpc, unix, http, metrics."""
    log: Path
    """What it writes to stderr."""

    def resources(self) -> Resources:
        """Read what it holds."""
        folder = Path(f"/proc/{self.process.pid}")
        lines = (line.split() for line in (folder / "status").read_text().splitlines())
        status = {line[0]: int(line[1]) for line in lines if line[0] in ("VmRSS:", "VmHWM:", "Threads:")}
        return Resources(
            resident_bytes=status["VmRSS:"] << 10,
            peak_bytes=status["VmHWM:"] << 10,
            threads=status["Threads:"],
            descriptors=len(list((folder / "fd").iterdir())),
        )

    def forget_peak(self) -> None:
        """Count the most memory from now on."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def sample(self, name: str) -> float:
        """Read a metric that has no labels."""
        return self._samples()[name]

    def held(self) -> dict[str, float]:
        """Read what it holds for requests, but for what it holds nothing of."""
        samples = self._samples()
        return {name: samples[name] for name in _HELD if samples[name]}

    def complaints(self) -> list[str]:
        """List what is in the log and should not be: errors, tracebacks, and what native code prints."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if not _is_harmless(line)]

    def wait_until_idle(self, descriptors: int) -> None:
        """Wait until it holds nothing for requests, and no more descriptors than those."""
        deadline_s = time.monotonic() + WAIT_S
        while self.held() or self.resources().descriptors > descriptors:
            assert time.monotonic() < deadline_s, f"{self.held()} and {self.resources()}, not {descriptors} descriptors"

    def _samples(self) -> dict[str, float]:
        with urlopen(f"http://{self.addresses['metrics']}/metrics", timeout=WAIT_S) as page:
            families = text_string_to_metric_families(page.read().decode())
            return {sample.name: sample.value for family in families for sample in family.samples if not sample.labels}


@contextmanager
def child_server(folder: Path, *flags: str) -> Iterator[ChildServer]:
    """Run a server with these flags, on free ports and a unix socket in the folder; killed at the end if need be."""
    ports = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
    fixed = ["--unix-socket", str(folder / "mixer.sock"), "--log-format", "json"]
    command = [sys.executable, "-m", "mixer_server", *ports, *fixed, *flags]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    path = folder / "log"
    with (
        path.open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environ) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline().split()
            assert line[:1] == ["ready"], path.read_text()
            addresses = dict(field.split("=", 1) for field in line[1:])
            yield ChildServer(process=process, addresses=addresses, log=path)
        finally:
            process.kill()


def _is_harmless(line: str) -> bool:
    try:
        return json.loads(line)["level"] in ("INFO", "WARNING")
    except (ValueError, TypeError, KeyError):  # not from our logging
        return False
