"""Loaders of a training program: an epoch's order, dealt to worker processes, as batches.

Order and augmentation depend on (seed, epoch, position) only; the number of workers or ranks changes neither.
"""

import logging

from samix.errors import ConfigError
from services.shards.config import DataConfig
from services.shards.dataset import BatchRequest, ShardDataset
from services.shards.index import ShardSet, open_shards
from services.shards.order import default_lanes, epoch_order, evaluation_positions, rank_batches
from services.shards.workers import BatchLoader

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
    loader = TrainLoader(config, shards, seed=seed, rank=rank, world_size=world_size, pin_memory=pin_memory)
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
    return EvalLoader(dataset, config, requests, pin_memory=pin_memory)


class TrainLoader(BatchLoader):
    """Batches of one rank for one epoch at a time; every rank has the same number of them."""

    def __init__(
        self, config: DataConfig, shards: ShardSet, *, seed: int, rank: int, world_size: int, pin_memory: bool
    ) -> None:
        dataset = ShardDataset(shards, config.train_transform(), num_classes=config.num_classes, seed=seed)
        super().__init__(dataset, config, [], pin_memory=pin_memory)
        self._shards = shards
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.steps_per_epoch = 0

    def set_epoch(self, epoch: int, *, first_step: int = 0) -> None:
        """Choose what the next iteration yields.

        Args:
            epoch: number of the epoch, from 0.
            first_step: steps already done in it, when a run resumes.

        Raises:
            ConfigError: if sizes do not divide each other, or the shards do not fill one global batch.
        """
        config = self._config
        order = epoch_order(self._shards.samples, seed=self._seed, epoch=epoch, window=config.window)
        steps = rank_batches(
            order,
            global_batch=config.global_batch,
            lanes=config.lanes or default_lanes(config.global_batch),
            rank=self._rank,
            world_size=self._world_size,
        )
        self.steps_per_epoch = len(steps)
        self._sampler.requests = [BatchRequest(epoch, positions) for positions in steps[first_step:]]


class EvalLoader(BatchLoader):
    """One rank's share of the samples, each once, in the order of the shards; the last batch may be smaller."""
