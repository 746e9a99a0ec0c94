"""A consumer of our datasets: a loop over subscriptions, epoch after epoch, as a training loop takes them.

What is subscribed to comes as JSON in SAMIX_BENCH_SUBSCRIBE: the options of `subscribe`, and `mixer`.
"""

import itertools
import json
import os
from collections.abc import Iterator

from closed_loop import Call, run

from samix import connect
from samix.client.config import ClientConfig
from samix.client.datasets.batch import ReadyBatch
from samix.client.remote import RemoteMixer
from services.malloc import tune_malloc

DATASET = "crops"
"""Its name on the server."""

_seeds = itertools.count()


def make_caller(address: str) -> Call:
    """Subscribe. Unmixed, one epoch is read first: afterwards its pictures are in the memory of the server."""
    options = json.loads(os.environ["SAMIX_BENCH_SUBSCRIBE"])
    mixer = options.pop("mixer", "")
    remote = connect(address, mixer=mixer, config=ClientConfig())
    batches = _batches(remote, next(_seeds), mix=bool(mixer), **options)
    for _ in range(0 if mixer else _batches_per_epoch(remote, mix=False, **options)):
        next(batches)

    def call() -> None:
        batch = next(batches)
        if batch.pixels.shape[0] != options["batch_size"]:
            raise ValueError(f"a batch must be of {options['batch_size']} images, got {batch.pixels.shape}")

    return call


def _batches(remote: RemoteMixer, seed: int, **options: object) -> Iterator[ReadyBatch]:
    for epoch in itertools.count():
        with remote.subscribe(DATASET, seed=seed, epoch=epoch, drop_last=True, **options) as subscription:  # pyright: ignore
            yield from subscription


def _batches_per_epoch(remote: RemoteMixer, **options: object) -> int:
    with remote.subscribe(DATASET, seed=1 << 32, drop_last=True, **options) as subscription:  # pyright: ignore
        return subscription.num_batches()


if __name__ == "__main__":
    tune_malloc()
    run(make_caller)
