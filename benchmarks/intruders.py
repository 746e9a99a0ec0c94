"""How much of its throughput a legitimate client keeps while intruders are at the server: `samix bench intruders`.

Windows without and with an intruder take turns, so that other work on the machine slows both alike.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.endurance_servers import Running, artefact_of, running_server
from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.intruder_acts import ACTS
from benchmarks.intruders_report import HOW_TO_READ, LIMIT, Visit, plain, spell, summarise, table
from benchmarks.machine import process_cpu_s
from samix.client.config import ClientConfig
from samix.client.remote import RemoteMixer, connect
from samix.credentials import Credentials
from samix.errors import ConfigError
from samix.health import ask_health, open_health_channel
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import resnet18_spec
from services.cli import program
from services.config import parse_config
from services.security.certs_cli import CertsConfig, write_certificates
from trainer.children import unwind_on_signals

_NOT_JUDGED = {"flood"}
_SECRET = "secret-of-a-trainer-that-behaves"
_BATCH, _SIDE, _DEPTH = 32, 32, 4
_PROBE_S = 1.0
_HEALTH_S = 5.0
_BEGIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class IntrudersConfig:
    """Put intruders at a server with TLS and tokens, and see what a legitimate client keeps."""

    json: Path = Path("runs/bench/intruders.json")
    """Where to write the figures; the server's log goes beside them."""
    seconds: float = 6.0
    """Length of one window, in seconds."""
    rounds: int = 3
    """How often each intruder comes; medians are shown."""
    acts: tuple[str, ...] = tuple(ACTS)
    """Which intruders."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"seconds must be above 0 and at most 600, got {self.seconds}")
        for act in self.acts:
            if act not in ACTS:
                raise ConfigError(f"no act is called {act!r}; there are {', '.join(ACTS)}")
        check_output(self.rounds, self.json)


@dataclass(slots=True)
class Probes:
    """What health checks answered."""

    answers: list[tuple[bool, float]] = field(default_factory=list)
    """Whether each was good, and how long it took, seconds."""


class Client:
    """Streams batches until it is closed, and counts images."""

    def __init__(self, remote: RemoteMixer) -> None:
        self.num_images = 0
        """Mixed so far."""
        self._remote = remote
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client")
        self.failure: Exception | None = None
        """Why it ended early."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for _ in self._remote.stream(self._batches(), seed=7, depth=_DEPTH):
                self.num_images += _BATCH
        except Exception as error:  # noqa: BLE001 - shown as the benchmark's own failure
            self.failure = error

    def _batches(self) -> Iterator[tuple[torch.Tensor, None]]:
        images = torch.zeros(_BATCH, 3, _SIDE, _SIDE, dtype=torch.uint8)
        while not self._is_over.is_set():
            yield images, None


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run all windows.

    Returns:
        1 if the client kept less than the limit of any act, else 0.
    """
    config = parse_config(IntrudersConfig, "bench-intruders", argv)
    unwind_on_signals()
    prepare_output(config.json)
    torch.set_num_threads(1)
    about = describe(pinned=None, settings=asdict(config), packages=("grpcio",))
    print(headline(about, "not bound to cores; passes take one", ("grpcio",)))
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="samix-intruders-")))
        server = opened.enter_context(_guarded_server(folder, config.json.with_suffix(".server.log")))
        costs = {act: _cost_s(act, server, folder, config.seconds) for act in config.acts}
        visits = _measure(config, server, folder)
    rows = {act: summarise(found, costs[act]) for act, found in visits.items()}
    report = {**about, "limit": LIMIT, "acts": rows, "visits": plain(visits)}
    publish(config.json, report, table(rows), HOW_TO_READ)
    return 0 if all(row["kept"] >= LIMIT for act, row in rows.items() if act not in _NOT_JUDGED) else 1


@contextmanager
def _guarded_server(folder: Path, log: Path) -> Iterator[Running]:
    write_certificates(CertsConfig(out=folder), datetime.now(UTC))
    tokens = folder / "tokens"
    tokens.write_text(f"mix trainer {_SECRET}\n")
    tokens.chmod(0o600)
    (folder / "token").write_text(_SECRET)
    flags = {
        "security.tls-cert": folder / "server.pem",
        "security.tls-key": folder / "server.key",
        "security.tokens": tokens,
        "warm-up-sides": _SIDE,
    }
    mixer = random_mixer(resnet18_spec(), seed=0, name="random-r18")
    with artefact_of(mixer) as artefact, running_server(artefact, None, log, flags) as server:
        yield server


def _measure(config: IntrudersConfig, server: Running, folder: Path) -> dict[str, list[Visit]]:
    credentials = Credentials(tls_ca=str(folder / "ca.pem"), token_file=str(folder / "token"))
    settings = ClientConfig(deadline_s=60.0, credentials=credentials)
    visits: dict[str, list[Visit]] = {act: [] for act in config.acts}
    with connect(server.target, config=settings) as remote:
        client = Client(remote)
        client.start()
        try:
            _window(client, config.seconds)  # until all is warm
            before = _window(client, config.seconds)
            for _ in range(config.rounds):
                for act in config.acts:
                    before = _visit(act, before, visits[act], client, server, folder, config.seconds)
        finally:
            client.close()
    return visits


def _visit(
    act: str,
    before: float,
    visits: list[Visit],
    client: Client,
    server: Running,
    folder: Path,
    seconds: float,
) -> float:
    """Let an intruder in for one window, and look at the next one without; returns the images/s of that."""
    with _intruder(act, server, folder) as intruder, _probing(server, folder) as probes:
        during = _window(client, seconds)
        found = _end(intruder)
    after = _window(client, seconds)
    visit = Visit(
        kept=2 * during / (before + after),
        done={answer: number / found["seconds"] for answer, number in found["done"].items()},
        num_healthy=sum(is_good for is_good, _ in probes.answers),
        num_asked=len(probes.answers),
        slowest_s=max((took_s for _, took_s in probes.answers), default=0.0),
    )
    visits.append(visit)
    print(f"    {act}: kept {visit.kept:.3f}, {spell(visit.done)}", flush=True)
    return after


def _window(client: Client, seconds: float) -> float:
    """Count the client's images/s for a while."""
    num_images, started_s = client.num_images, time.monotonic()
    threading.Event().wait(seconds)
    took_s = time.monotonic() - started_s
    if client.failure is not None:
        raise client.failure
    return (client.num_images - num_images) / took_s


def _cost_s(act: str, server: Running, folder: Path, seconds: float) -> float:
    """Measure what one act costs an idle server, in seconds of processor time."""
    started_s = process_cpu_s(server.child.process_id)
    with _intruder(act, server, folder) as intruder:
        threading.Event().wait(seconds)
        found = _end(intruder)
    return (process_cpu_s(server.child.process_id) - started_s) / max(1, sum(found["done"].values()))


def _end(intruder: subprocess.Popen[str]) -> dict[str, Any]:
    """Tell an intruder to end, and hear what came of it."""
    intruder.terminate()
    said, _ = intruder.communicate(timeout=_BEGIN_S)
    return json.loads(said)


@contextmanager
def _intruder(act: str, server: Running, folder: Path) -> Iterator[subprocess.Popen[str]]:
    words = [act, server.target, server.addresses["http"], str(folder / "ca.pem"), _SECRET]
    command = ["nice", "-n", "19", sys.executable, "-m", "benchmarks.intruder_acts", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n", "it says so first"
            yield process
        finally:
            process.kill()


@contextmanager
def _probing(server: Running, folder: Path) -> Iterator[Probes]:
    """Ask for health now and then, each time on a new connection."""
    probes, is_over = Probes(), threading.Event()
    credentials = Credentials(tls_ca=str(folder / "ca.pem"))

    def probe() -> None:
        while not is_over.wait(_PROBE_S):
            with open_health_channel(server.target, credentials) as channel:
                health = ask_health(channel, timeout_s=_HEALTH_S)
            probes.answers.append((health.is_serving, health.round_trip_s))

    thread = threading.Thread(target=probe, name="probe")
    thread.start()
    try:
        yield probes
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
