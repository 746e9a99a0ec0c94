"""How many training images a core loads, beside webdataset: `make bench-input`.

Loading one image costs about a millisecond, most of it libjpeg-turbo's. Loaders take short turns on one core within
each round, so that other work on the machine slows all alike: compare the ratios.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import check_output, describe, headline, prepare_output, publish
from benchmarks.input_loaders import BATCH_SIZE, SIDE, openers, repeat_shards
from benchmarks.input_report import summarise, table
from benchmarks.machine import choose_cores, on_core
from benchmarks.turns import Turn, running
from samix.errors import ConfigError
from services.cli import ProgramFailed, program
from services.config import parse_config
from services.malloc import tune_malloc

LIMIT = 1.25
"""Images per second of processor time, ours over the fastest peer's, that were promised."""
_WORKERS = (0, 1)
_PACKAGES = ("torchvision", "pillow", "simplejpeg", "webdataset")
_HOW_TO_READ = """\
CPU        processor time of the process and its worker: images/s that one core sustains; the ratio is of these
wall       the same turns by the clock; other work on the core makes it slower
workers    0 decodes in the training process, 1 in a process beside it on the same core
Median over the rounds; the ratio is the median of what each round says."""


@dataclass(frozen=True, kw_only=True)
class BenchInputConfig:
    """Load photographs with ImageNet's training augmentation, ours and webdataset's way, on one core."""

    shards: str
    """Local shards of JPEG photographs and labels (.jpg, .cls): a path, a glob or a pattern with braces (quote it)."""
    rounds: int = 15
    """How often everything is measured; medians are shown."""
    batches: int = 3
    """Batches of 64 images that a loader yields in its turn; above 2, which a worker keeps ready."""
    repeats: int = 20
    """How often an epoch has each shard: few photographs make a long epoch."""
    json: Path = Path("runs/bench/input.json")
    """Where to write the figures."""

    def __post_init__(self) -> None:
        check_output(self.rounds, self.json)
        if not 3 <= self.batches <= 999:
            raise ConfigError(f"batches must lie in 3..999, got {self.batches}")
        if not 1 <= self.repeats <= 999:
            raise ConfigError(f"repeats must lie in 1..999, got {self.repeats}")


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run `python -m benchmarks.input`."""
    config = parse_config(BenchInputConfig, "bench input", argv)
    if not hasattr(os, "sched_setaffinity"):
        raise ConfigError(f"processes cannot be bound to a core on {sys.platform}; run this on Linux")
    tune_malloc()
    torch.set_num_threads(1)
    prepare_output(config.json)
    report = _run(config)
    publish(config.json, report, table(report["cases"], LIMIT), _HOW_TO_READ)
    if any(case["ratio"] < LIMIT for case in report["cases"]):
        raise ProgramFailed(f"a ratio is below {LIMIT}; see the table")


def _run(config: BenchInputConfig) -> dict[str, Any]:
    core = choose_cores().server
    settings = {**asdict(config), "batch_size": BATCH_SIZE, "image_size": SIDE}
    about = {**describe(pinned=core, settings=settings, packages=_PACKAGES), "limit": LIMIT}
    print(headline(about, f"one thread, on core {core}", _PACKAGES), flush=True)
    with on_core(core), tempfile.TemporaryDirectory(prefix="samix-bench-") as folder:
        shards = repeat_shards(config.shards, Path(folder), config.repeats)
        cases = [summarise(num_workers, _measure(config, shards, num_workers)) for num_workers in _WORKERS]
    return {**about, "cases": cases}


def _measure(config: BenchInputConfig, shards: str, num_workers: int) -> dict[str, list[Turn]]:
    """Let the loaders take turns; every other round goes backwards, so that what drifts does so for all."""
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(running(start))
            for name, start in openers(shards, num_workers=num_workers).items()
        }
        taken: dict[str, list[Turn]] = {name: [] for name in runners}
        for number in range(config.rounds + 1):
            stage = f"round {number} of {config.rounds}" if number else "warming up"
            print(f"workers {num_workers}, {stage}", flush=True)
            for name in list(runners)[:: 1 if number % 2 else -1]:
                turn = runners[name].take_turn(config.batches)
                if number:
                    taken[name].append(turn)
    return taken


if __name__ == "__main__":
    sys.exit(main())
