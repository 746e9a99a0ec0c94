"""Whether one client that asks for much leaves another its share of a server."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.endurance_crowd import Crowd
from benchmarks.endurance_report import Check, PartReport
from benchmarks.endurance_servers import artefact_of, running_server
from benchmarks.machine import Cores
from samix.client.config import ClientConfig
from samix.client.remote import connect
from samix.errors import ConfigError
from samix.mixing.frozen import random_mixer
from samix.mixing.plan import generator_for
from samix.mixing.presets import tiny_spec

_EQUAL_SHARE = 0.5
_LIMIT = 0.45
"""Of an equal share, that the modest client has to keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FairnessConfig:
    """A greedy client and a modest one."""

    seconds: float = 20.0
    """How long images are counted, in seconds."""
    streams: int = 16
    """Streams of the greedy client; the modest one has a single one."""
    depth: int = 4
    """Batches under way on each stream."""
    batch_size: int = 64
    """Images of a batch."""

    def __post_init__(self) -> None:
        if not 0 < self.seconds <= 600:
            raise ConfigError(f"fairness.seconds must be above 0 and at most 600, got {self.seconds}")
        for name in ("streams", "depth", "batch_size"):
            if not 1 <= getattr(self, name) <= 256:
                raise ConfigError(f"fairness.{name.replace('_', '-')} must lie in 1..256, got {getattr(self, name)}")


def run_fairness(config: FairnessConfig, cores: Cores, log: Path) -> PartReport:
    """Let both ask for all they can get, and count what each is given."""
    mixer = random_mixer(tiny_spec(), seed=0, name="random-r10")
    with artefact_of(mixer) as artefact, running_server(artefact, cores.server, log) as server:
        images = _compete(config, server.target)
    share = images["modest"] / max(1, images.total())
    print(f"    greedy {images['greedy']:,} images, modest {images['modest']:,}", flush=True)
    check = Check(
        figure="share of an equal share that the modest client keeps",
        value=round(100 * share / _EQUAL_SHARE, 2),
        bound="at least",
        limit=100 * _LIMIT,
        unit=" %",
    )
    return PartReport(name="fairness", checks=[check], details={"settings": asdict(config), "images": dict(images)})


def _compete(config: FairnessConfig, target: str) -> Counter[str]:
    names = ["modest", *["greedy"] * config.streams]
    streaming = threading.Barrier(len(names) + 1)
    is_counting = threading.Event()
    counts = [0] * len(names)

    def stream(number: int, stopping: threading.Event) -> None:
        settings = ClientConfig(name=names[number], deadline_s=60.0)
        with connect(target, config=settings) as mixer:
            mixed = mixer.stream(_batches(config.batch_size), seed=number, depth=config.depth)
            next(mixed)
            streaming.wait(60.0)
            for batch in mixed:
                counts[number] += len(batch.images) * is_counting.is_set()
                if stopping.is_set():
                    return

    with Crowd(len(names), stream) as crowd:
        streaming.wait(60.0)
        crowd.wait(config.seconds / 10)
        is_counting.set()
        crowd.wait(config.seconds)
        is_counting.clear()
    images: Counter[str] = Counter()
    for name, count in zip(names, counts, strict=True):
        images[name] += count
    return images


def _batches(batch_size: int) -> Iterator[tuple[Tensor, None]]:
    images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8, generator=generator_for("fairness"))
    return itertools.repeat((images, None))
