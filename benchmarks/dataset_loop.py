"""The loop that streaming from a server is measured against: load shards and mix, in one process."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samix.mixing.artefact import load_mixer
from services.cli import program
from services.config import parse_config
from services.malloc import tune_malloc
from services.shards.config import DataConfig
from services.shards.dataset import Batch
from services.shards.loader import train_loader
from trainer.children import start_child

_MODULE = "benchmarks.dataset_loop"
_SETTLE_BATCHES = 3
_SPARE_S = 180.0


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Load and mix for a while."""

    shards: str
    """What is loaded."""
    mixer: Path
    """What mixes."""
    batch_size: int
    """Images of a batch."""
    image_size: int
    """Side of the images, pixels."""
    seconds: float
    """How long, in seconds, and at least five batches."""
    num_workers: int
    """Processes that decode; 0 decodes in the process that mixes."""
    num_threads: int
    """Threads of the mixer."""


def measure_loop(config: LoopConfig, log: Path) -> float:
    """Run the loop in a process of its own; answers images per second.

    Raises:
        ChildFailed: if it fails.
    """
    flags = [word for name, value in vars(config).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with start_child(_MODULE, flags, log) as child:
        line = child.wait_for_line("figures ", config.seconds + _SPARE_S)
    return json.loads(line.removeprefix("figures "))["images_per_s"]


@program
def main(argv: Sequence[str] | None = None) -> None:
    """Run the loop, and print a line `figures JSON`."""
    config = parse_config(LoopConfig, "bench dataset-loop", argv)
    tune_malloc()
    torch.set_num_threads(config.num_threads)
    print(f"figures {json.dumps(_measure(config))}", flush=True)


def _measure(config: LoopConfig) -> dict[str, Any]:
    mixer = load_mixer(config.mixer, device="cpu")
    num_images, started_s, elapsed_s = 0, 0.0, 0.0
    for number, batch in enumerate(_batches(config), -_SETTLE_BATCHES):
        if number == 0:
            started_s = time.perf_counter()
        mixed = mixer.mix(batch.images, batch.labels, seed=number + _SETTLE_BATCHES)
        if number >= 0:
            num_images += len(mixed.images)
            elapsed_s = time.perf_counter() - started_s
        if elapsed_s > config.seconds and number >= 4:
            break
    return {"images_per_s": num_images / elapsed_s}


def _batches(config: LoopConfig) -> Iterator[Batch]:
    data = DataConfig(
        train=config.shards,
        val=config.shards,
        num_classes=10,
        image_size=config.image_size,
        global_batch=config.batch_size,
        num_workers=config.num_workers,
    )
    loader = train_loader(data, seed=0)
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


if __name__ == "__main__":
    sys.exit(main())
