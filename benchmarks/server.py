"""How much of an in-process mixer's speed arrives through the server: images per second, served against bare.

Server and bare forward run on the same core with one thread, the client on another. The client does all that a trainer
does with an answer: it renders the masks and blends its pixels.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from samix import connect
from samix.client.remote import RemoteMixer
from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer, save_artefact
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for
from samix.mixing.presets import resnet18_spec, tiny_spec
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc
from trainer.children import start_child
from trainer.provenance import software

ROUNDS = 3
DEPTH = 4
_READY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measure the mixer server against the same mixer in this process."""

    json: Path = Path("runs/bench/server.json")
    """Where the figures go."""
    seconds: float = 2.0
    """Length of each measurement; every figure is the median of three."""
    full: bool = False
    """Also measure ResNet-18 at 224 pixels, which takes a CPU seconds per batch."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"seconds must lie in (0, 600], got {self.seconds}")


@dataclass(frozen=True, slots=True)
class Case:
    """One mixer at one size."""

    mixer: FrozenMixer
    side: int
    batch_size: int

    def __str__(self) -> str:
        return f"{self.mixer.name}, {self.batch_size} x {self.side} px"


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.server`."""
    config = parse_config(BenchConfig, "bench", argv)
    tune_malloc()
    torch.set_num_threads(1)
    config.json.parent.mkdir(parents=True, exist_ok=True)
    rows = [measure(case, config) for case in cases(full=config.full)]
    about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(), **software()}
    config.json.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    print(table(rows))
    print(
        f"{about['machine']}, torch {about['torch']}, commit {about['commit']}, {about['date']}; also in {config.json}"
    )


def cases(*, full: bool) -> list[Case]:
    """Choose what is measured."""
    shipped = load_mixer(Path(__file__).parents[1] / "mixers/samix-digits-r10.safetensors")
    chosen = [Case(shipped, 16, 64), Case(random_mixer(tiny_spec(), seed=0, name="random-r10"), 32, 64)]
    return [*chosen, Case(random_mixer(resnet18_spec(), seed=0, name="random-r18"), 224, 16)] if full else chosen


def measure(case: Case, config: BenchConfig) -> dict[str, Any]:
    """Measure bare and served speeds in turns, and the latency of a lone request."""
    print(f"{case} ...", flush=True)
    images = torch.randint(0, 256, (case.batch_size, 3, case.side, case.side), dtype=torch.uint8)
    plan = draw_plan(case.batch_size, alpha=SAMIX_ALPHA, generator=generator_for(0))
    with serve(case.mixer) as addresses, connect(addresses["grpc"]) as tcp, connect(addresses["unix"]) as unix:
        pin_to(1)
        tcp.wait_ready(_READY_S)
        speeds: dict[str, list[float]] = {"bare": [], "tcp": [], "unix": []}
        for _ in range(ROUNDS):
            pin_to(0)
            speeds["bare"].append(speed(lambda: case.mixer.mask_logits(images, plan), case, config.seconds))
            pin_to(1)
            speeds["tcp"].append(speed(pipelined(tcp, images, plan), case, config.seconds))
            speeds["unix"].append(speed(pipelined(unix, images, plan), case, config.seconds))
        latencies = lone_latencies(tcp, images, plan, config.seconds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "case": str(case),
        **{f"{name}_images_per_s": round(value, 1) for name, value in medians.items()},
        **{f"{name}_over_bare": round(medians[name] / medians["bare"], 3) for name in ("tcp", "unix")},
        "latency_p50_ms": round(1000 * latencies[len(latencies) // 2], 2),
        "latency_p95_ms": round(1000 * latencies[int(len(latencies) * 0.95)], 2),
    }


@contextmanager
def serve(mixer: FrozenMixer) -> Iterator[dict[str, str]]:
    """Start a server process for a mixer, on one core with one thread; yields its addresses."""
    with tempfile.TemporaryDirectory() as folder:
        artefact, socket = Path(folder) / f"{mixer.name}.safetensors", Path(folder) / "mixer.sock"
        save_artefact(artefact, mixer, {"data": "none"})
        ports = [flag for name in ("grpc", "http", "metrics") for flag in (f"--{name}-port", "0")]
        args = ["serve", "--mixers", str(artefact), "--num-threads", "1", "--unix-socket", str(socket), *ports]
        pin_to(0)  # inherited
        with start_child("samix", args, Path(folder) / "server.log") as server:
            line = server.wait_for_line("ready ", _READY_S)
            yield dict(part.split("=", 1) for part in line.split()[1:]) | {"unix": f"unix://{socket}"}


def speed(mix: Callable[[], object], case: Case, seconds: float) -> float:
    """Count images per second of a call that mixes one batch, after one that is not counted."""
    mix()
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        mix()
        batches += 1
    return batches * case.batch_size / (time.perf_counter() - started)


def pipelined(remote: RemoteMixer, images: torch.Tensor, plan: MixPlan) -> Callable[[], object]:
    """Make a call that sends one batch and collects the one sent `DEPTH` calls before."""
    under_way = deque(remote.submit(images, plan=plan) for _ in range(DEPTH))

    def mix() -> object:
        under_way.append(remote.submit(images, plan=plan))
        return under_way.popleft().result()

    return mix


def lone_latencies(remote: RemoteMixer, images: torch.Tensor, plan: MixPlan, seconds: float) -> list[float]:
    """Time requests that are alone on the server, in seconds, sorted."""
    latencies, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or not latencies:
        started = time.perf_counter()
        remote.submit(images, plan=plan).result()
        latencies.append(time.perf_counter() - started)
    return sorted(latencies)


def pin_to(core: int) -> None:
    """Keep this process, and children it starts from now on, on one core where there are several (Linux)."""
    if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > core:
        os.sched_setaffinity(0, {core})


def machine() -> str:
    """Describe this machine in a few words."""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the figures out for a person."""
    head = f"{'images/s':<32}{'bare':>9}{'TCP':>9}{'ratio':>8}{'unix':>9}{'ratio':>8}{'p50 ms':>9}{'p95 ms':>9}"
    lines = [
        f"{row['case']:<32}{row['bare_images_per_s']:>9.0f}{row['tcp_images_per_s']:>9.0f}{row['tcp_over_bare']:>8.2f}"
        f"{row['unix_images_per_s']:>9.0f}{row['unix_over_bare']:>8.2f}"
        f"{row['latency_p50_ms']:>9.1f}{row['latency_p95_ms']:>9.1f}"
        for row in rows
    ]
    return "\n".join([head, *lines])


if __name__ == "__main__":
    raise SystemExit(main())
