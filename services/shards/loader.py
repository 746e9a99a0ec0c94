"""Loaders of a training program: an epoch's order, dealt to worker processes, as batches.

Order and augmentation depend on (seed, epoch, position) only; the number of workers or ranks changes neither.
"""

import hashlib
import logging
from collections.abc import Iterator

from samix.errors import ConfigError, ShardError
from services.shards.config import DataConfig
from services.shards.dataset import Batch, BatchRequest, ShardDataset
from services.shards.index import ShardSet, open_shards
from services.shards.order import (
    default_lanes,
    epoch_order,
    evaluation_positions,
    rank_batches,
    split_steps,
)
from services.shards.read_ahead import ReadAhead
from services.shards.shard import shard_name
from services.shards.skips import SkipLedger
from services.shards.workers import BatchLoader

log = logging.getLogger(__name__)


def train_loader(
    config: DataConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    micro_batches: int = 1,
) -> "TrainLoader":
    """Open the training shards.

    Args:
        config: what to load.
        seed: of the run, not negative; order and augmentation follow from it.
        rank: which of the `world_size` ranks loads.
        world_size: number of ranks.
        pin_memory: hand out page-locked batches, for CUDA.
        micro_batches: batches that this rank's samples of each step are handed out in, all of one size.

    Raises:
        ShardError: if the shards cannot be used.
        ConfigError: if sizes do not divide each other, the shards do not fill one global batch, or the index knows
            another number of classes.
    """
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")
    shards = _open(config, config.train, tolerant=config.skip_budget > 0)
    loader = TrainLoader(
        config,
        shards,
        seed=seed,
        rank=rank,
        world_size=world_size,
        pin_memory=pin_memory,
        micro_batches=micro_batches,
    )
    loader.set_epoch(0)
    if rank == 0:
        dropped = shards.total - loader.steps_per_epoch * config.global_batch
        log.info("train_shards", extra={"shards": len(shards.shards), "samples": shards.total, "dropped": dropped})
        _warn_of_small_cache(config, shards)
    return loader


def eval_loader(config: DataConfig, *, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> "EvalLoader":
    """Open the evaluation shards. Rank r of W gets every W-th sample, so counts may differ by one; nothing is padded.

    Raises:
        ShardError: if the shards cannot be used.
        ConfigError: if the index knows another number of classes.
    """
    shards = _open(config, config.val, tolerant=False)
    dataset = ShardDataset(shards, config.eval_transform(), num_classes=config.num_classes, seed=0)
    positions = evaluation_positions(shards.total, rank=rank, world_size=world_size)
    batch_size = max(1, config.global_batch // world_size)
    requests = [
        BatchRequest(0, positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)
    ]
    loader = EvalLoader(dataset, config, requests, read_ahead=ReadAhead(shards), pin_memory=pin_memory)
    loader.classes = shards.classes
    return loader


class TrainLoader(BatchLoader):
    """Batches of one rank for one epoch at a time; every rank has the same number of them."""

    def __init__(
        self,
        config: DataConfig,
        shards: ShardSet,
        *,
        seed: int,
        rank: int,
        world_size: int,
        pin_memory: bool,
        micro_batches: int,
    ) -> None:
        dataset = ShardDataset(
            shards,
            config.train_transform(),
            num_classes=config.num_classes,
            seed=seed,
            may_skip=config.skip_budget > 0,
        )
        super().__init__(dataset, config, [], read_ahead=ReadAhead(shards), pin_memory=pin_memory)
        self._shards = shards
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._micro_batches = micro_batches
        self._skips = SkipLedger(config.skip_budget, rank=rank)
        self.steps_per_epoch = 0
        """Steps of the optimiser; each takes `micro_batches` batches."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            self._skips.count(batch.skipped)
            yield batch
        self._skips.report()

    @property
    def skipped(self) -> int:
        """Samples this rank could not read since the program started; others took their place."""
        return self._skips.total

    @property
    def fingerprint(self) -> str:
        """Name of the samples and all that their order follows from beside seed and epoch, for a run that resumes."""
        config = self._config
        # Not by address: shards may move to another place.
        shards = [(shard_name(shard.address), shard.sha256) for shard in self._shards.shards]
        parts = (shards, self._shards.samples, config.global_batch, self._lanes, config.window)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def set_epoch(self, epoch: int, *, first_step: int = 0) -> None:
        """Choose what the next iteration yields.

        Args:
            epoch: number of the epoch, from 0.
            first_step: steps of the optimiser already done in it, when a run resumes.

        Raises:
            ConfigError: if sizes do not divide each other, or the shards do not fill one global batch.
        """
        config = self._config
        order = epoch_order(self._shards.samples, seed=self._seed, epoch=epoch, window=config.window)
        steps = rank_batches(
            order,
            global_batch=config.global_batch,
            lanes=self._lanes,
            rank=self._rank,
            world_size=self._world_size,
        )
        batches = split_steps(steps[first_step:], self._micro_batches)
        self.steps_per_epoch = len(steps)
        self._skips.start(epoch)
        self._sampler.requests = [BatchRequest(epoch, positions) for positions in batches]

    @property
    def _lanes(self) -> int:
        return self._config.lanes or default_lanes(self._config.global_batch)


class EvalLoader(BatchLoader):
    """One rank's share of the samples, each once, in the order of the shards; the last batch may be smaller."""

    classes: tuple[str, ...] = ()
    """Names of the classes, by number, where an index lists them."""

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from super().__iter__()
        except ShardError as err:
            raise ShardError(f"{err} (evaluation skips nothing: an accuracy over fewer samples would mislead)") from err


def _open(config: DataConfig, pattern: str, *, tolerant: bool) -> ShardSet:
    shards = open_shards(pattern, cache=config.shard_cache(), index=config.index, tolerant=tolerant)
    listed, expected = len(shards.classes), config.num_classes
    if listed and listed != expected:
        raise ConfigError(
            f"the index of {pattern} lists {listed} classes, but there are {expected} classes (0 to {expected - 1}); "
            f"{'raise' if listed > expected else 'lower'} num-classes to {listed}"
        )
    return shards


def _warn_of_small_cache(config: DataConfig, shards: ShardSet) -> None:
    sizes = [shard.num_bytes for shard in shards.shards if shard.path is None and shard.num_bytes is not None]
    if not sizes:
        return
    lanes = config.lanes or default_lanes(config.global_batch)
    needed_gb = sum(sizes) / len(sizes) * min(len(sizes), lanes * config.window) / 1e9
    if needed_gb > config.cache_gb:
        cure = "raise cache_gb, or lower lanes or window"
        log.warning(
            "shards_fetched_repeatedly", extra={"needed_gb": needed_gb, "cache_gb": config.cache_gb, "cure": cure}
        )
