"""What a program loads: shards, sizes, augmentation and workers."""

import math
from dataclasses import dataclass
from pathlib import Path

from samix.errors import ConfigError
from services.shards.cache import ShardCache
from services.shards.views import ViewConfig


@dataclass(frozen=True, kw_only=True)
class LoadingConfig(ViewConfig):
    """How images are loaded."""

    global_batch: int = 128
    """Samples per step of all ranks together; stays the same when the number of ranks changes."""
    window: int = 16
    """Shards whose samples are shuffled together. More mixes better, fewer reads disks more evenly."""
    lanes: int = 0
    """Parts an epoch is cut into; the world size must divide it, and it the batch. 0 chooses by the batch."""
    num_workers: int = 2
    """Processes per rank that decode; 0 decodes in the training process."""
    prefetch: int = 4
    """Batches each worker prepares ahead."""
    skip_budget: int = 0
    """Samples a rank may leave out of an epoch because they cannot be read, others taking their place; 0: none."""
    index: str = ""
    """Path or address of the shards' index.json; empty is the one beside them, which pipe: shards cannot have."""
    cache: Path = Path("~/.cache/samix/shards")
    """Folder where remote shards are kept whole, shared by all processes of a machine."""
    cache_gb: float = 200.0
    """Most it holds, GB; the shards used longest ago leave first. Lanes times window shards should fit."""

    def __post_init__(self) -> None:
        ViewConfig.__post_init__(self)
        for name in ("global_batch", "window", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lanes", "num_workers", "skip_budget"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.cache_gb < math.inf:
            raise ConfigError(f"cache_gb must be positive and finite, got {self.cache_gb}; it holds whole shards")

    def shard_cache(self) -> ShardCache:
        """Describe the cache of remote shards."""
        return ShardCache(folder=self.cache, limit_bytes=round(self.cache_gb * 1e9))


@dataclass(frozen=True, kw_only=True)
class LabelledShards:
    """Where images are and how many classes they have."""

    train: str
    """Shards to train on: path, glob or pattern like train-{000000..000003}.tar, URL or pipe:COMMAND (quote it)."""
    val: str
    """Shards to evaluate on."""
    num_classes: int
    """Labels run from 0 to this minus 1."""


@dataclass(frozen=True, kw_only=True)
class DataConfig(LoadingConfig, LabelledShards):  # fields of the last base come first, so help starts with the shards
    """Images and how they are loaded."""

    def __post_init__(self) -> None:
        LoadingConfig.__post_init__(self)
        if self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {self.num_classes}")
