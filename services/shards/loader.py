"""Loaders of a training program: an epoch's order, dealt to worker processes, as batches.

Order and augmentation depend on (seed, epoch, position) only; the number of workers or ranks changes neither. A loader
owns its workers and files: use it in a `with`, or close it.
"""

import logging
from collections.abc import Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import Any, Self

import torch
from torch.utils.data import DataLoader

from samix.errors import ConfigError, InputError
from services.shards.config import DataConfig
from services.shards.dataset import Batch, BatchRequest, ShardDataset
from services.shards.index import open_shards
from services.shards.order import default_lanes, epoch_order, evaluation_positions, rank_batches

log = logging.getLogger(__name__)


def train_loader(
    config: DataConfig, *, seed: int, rank: int = 0, world_size: int = 1, pin_memory: bool = False
) -> "TrainLoader":
    """Open the training shards.

    Args:
        config: what to load.
        seed: of the run, not negative; order and augmentation follow from it.
        rank: which of the `world_size` ranks loads.
        world_size: number of ranks.
        pin_memory: hand out page-locked batches, for CUDA.

    Raises:
        ShardError: if the shards cannot be used.
        ConfigError: if sizes do not divide each other, or the shards do not fill one global batch.
    """
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")
    shards = open_shards(config.train)
    dataset = ShardDataset(shards, config.train_transform(), num_classes=config.num_classes, seed=seed)
    workers = _Workers(dataset, config, pin_memory=pin_memory)
    loader = TrainLoader(config, shards.samples, workers, seed=seed, rank=rank, world_size=world_size)
    loader.set_epoch(0)
    if rank == 0:
        dropped = shards.total - loader.steps_per_epoch * config.global_batch
        log.info("train_shards", extra={"shards": len(shards.paths), "samples": shards.total, "dropped": dropped})
    return loader


def eval_loader(config: DataConfig, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> "EvalLoader":
    """Open the evaluation shards. Rank r of W gets every W-th sample, so counts may differ by one; nothing is padded.

    Raises:
        ShardError: if the shards cannot be used.
    """
    shards = open_shards(config.val)
    dataset = ShardDataset(shards, config.eval_transform(), num_classes=config.num_classes, seed=0)
    positions = evaluation_positions(shards.total, rank=rank, world_size=world_size)
    batch_size = max(1, config.global_batch // world_size)
    requests = [
        BatchRequest(0, positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)
    ]
    return EvalLoader(requests, _Workers(dataset, config, pin_memory=pin_memory))


class TrainLoader:
    """Batches of one rank for one epoch at a time; every rank has the same number of them."""

    def __init__(
        self,
        config: DataConfig,
        samples_per_shard: tuple[int, ...],
        workers: "_Workers",
        *,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        self._config = config
        self._samples_per_shard = samples_per_shard
        self._workers = workers
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._requests: list[BatchRequest] = []
        self.steps_per_epoch = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_epoch(self, epoch: int, *, first_step: int = 0) -> None:
        """Choose what the next iteration yields.

        Args:
            epoch: number of the epoch, from 0.
            first_step: steps already done in it, when a run resumes.

        Raises:
            ConfigError: if sizes do not divide each other, or the shards do not fill one global batch.
        """
        config = self._config
        order = epoch_order(self._samples_per_shard, seed=self._seed, epoch=epoch, window=config.window)
        steps = rank_batches(
            order,
            global_batch=config.global_batch,
            lanes=config.lanes or default_lanes(config.global_batch),
            rank=self._rank,
            world_size=self._world_size,
        )
        self.steps_per_epoch = len(steps)
        self._requests = [BatchRequest(epoch, positions) for positions in steps[first_step:]]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return self._workers.load(self._requests)

    def close(self) -> None:
        """Stop the workers and close the shards."""
        self._workers.close()


class EvalLoader:
    """Every sample of one rank's share once, in the order of the shards; the last batch may be smaller."""

    def __init__(self, requests: list[BatchRequest], workers: "_Workers") -> None:
        self._requests = requests
        self._workers = workers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        return self._workers.load(self._requests)

    def close(self) -> None:
        """Stop the workers and close the shards."""
        self._workers.close()


class _Workers:
    """Answers requests in their order, in this process or in workers that live until `close`."""

    def __init__(self, dataset: ShardDataset, config: DataConfig, *, pin_memory: bool) -> None:
        self._dataset = dataset
        self._config = config
        self._pin_memory = pin_memory
        self._sampler = _Sampler()
        self._loader: DataLoader[Batch | InputError] | None = None

    def load(self, requests: list[BatchRequest]) -> Iterator[Batch]:
        self._sampler.requests = requests
        self._loader = self._loader or self._start()
        for answer in self._loader:
            if isinstance(answer, InputError):
                raise answer
            yield answer

    def close(self) -> None:
        self._loader = None  # torch stops its workers when the last reference goes
        self._dataset.close()

    def _start(self) -> DataLoader[Batch | InputError]:
        num_workers = self._config.num_workers
        return DataLoader(
            self._dataset,
            batch_size=None,  # a request is a whole batch
            sampler=self._sampler,
            collate_fn=_as_is,
            num_workers=num_workers,
            prefetch_factor=self._config.prefetch if num_workers else None,
            persistent_workers=num_workers > 0,
            multiprocessing_context=_worker_context() if num_workers else None,
            pin_memory=self._pin_memory,
            generator=torch.Generator(),  # else it would draw from torch's global one
        )


class _Sampler:
    """Feeds the DataLoader; persistent workers need one object whose content changes."""

    def __init__(self) -> None:
        self.requests: list[BatchRequest] = []

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self.requests)


def _worker_context() -> ForkServerContext:
    # A forked copy of a process that uses gRPC crashes or hangs: grpc/grpc#32992. The fork server never saw gRPC, and
    # imports torch once for all workers.
    context = get_context("forkserver")
    context.set_forkserver_preload(["services.shards.dataset"])
    return context


def _as_is(answer: Any) -> Any:
    return answer
