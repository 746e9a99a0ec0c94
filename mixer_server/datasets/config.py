"""What can be said about the datasets of `samix serve`."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mixer_server.limits import check_seconds
from samix.errors import ConfigError
from services.shards.augment import Transform
from services.shards.cache import ShardCache
from services.shards.resample import Interpolation
from services.shards.views import ViewConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetsConfig:
    """How the shards of --dataset are read, decoded and streamed."""

    num_workers: int = 2
    """Processes that decode, for each dataset."""
    memory_mib: int = 0
    """Decoded pictures kept in memory, in MiB, of all datasets together, so that they are decoded once and not in every
    epoch; 0 keeps none. It is taken out of --memory-mib. 224 pixels take 0.14 MiB a picture, resized crops of them
    0.19. With it, resized crops are taken of pictures that were shrunk to 8/7 of the crop's side first."""
    read_ahead: int = 4
    """Batches made ahead for each consumer, as far as half of the requests' memory, shared among all, allows."""
    lease_s: float = 60.0
    """A consumer that gives no credit, or does not read, for so long is dropped, in seconds; it may come back with its
    cursor."""
    max_subscriptions: int = 64
    """Most subscriptions at once; each holds two threads. Further ones are refused with a hint when to come again."""
    skip_budget: int = 0
    """Samples of an epoch, of all its consumers together, that may be left out because they cannot be read; 0: none."""
    window: int = 16
    """Shards whose samples are shuffled together. More mixes better, fewer reads disks more evenly."""
    augment: Literal["resized_crop", "crop"] = "resized_crop"
    """What CROP_FLIP does. resized_crop: random area and shape (ImageNet); crop: a padded random crop (CIFAR)."""
    flip: bool = True
    """Mirror every other picture; not for digits or letters."""
    padding: int = 4
    """Border of augment crop on each side, pixels, reflected."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that augment resized_crop keeps."""
    interpolation: Interpolation = "bilinear"
    """Between pixels where a picture is resized."""
    cache: Path = Path("~/.cache/samix/shards")
    """Folder where remote shards are kept whole, shared by all processes of a machine."""
    cache_gb: float = 200.0
    """Most it holds, GB; the shards used longest ago leave first."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "read_ahead", "max_subscriptions", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"datasets.{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in ("memory_mib", "skip_budget"):
            if getattr(self, name) < 0:
                raise ConfigError(f"datasets.{_flag(name)} must be >= 0, got {getattr(self, name)}; 0 is none")
        check_seconds("datasets.lease-s", self.lease_s)
        if not 0 < self.cache_gb < math.inf:
            raise ConfigError(f"datasets.cache-gb must be positive and finite, got {self.cache_gb}")
        if self.padding < 0:
            raise ConfigError(f"datasets.padding must be >= 0, got {self.padding}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(
                f"datasets.crop-scale must be two shares, 0 < smallest <= largest <= 1, got {self.crop_scale}"
            )

    @property
    def keeps_pictures(self) -> bool:
        """Whether decoded pictures are kept in memory."""
        return self.memory_mib > 0

    def transform(self, image_size: int, *, is_centred: bool) -> Transform:
        """Make what happens to a picture.

        Raises:
            ConfigError: if a view of that size, in pixels, cannot be made.
        """
        view = ViewConfig(
            image_size=image_size,
            augment="none" if is_centred else self.augment,
            flip=self.flip,
            padding=self.padding,
            crop_scale=self.crop_scale,
            interpolation=self.interpolation,
        )
        return view.train_transform()

    def shard_cache(self) -> ShardCache:
        """Describe the cache of remote shards."""
        return ShardCache(folder=self.cache, limit_bytes=round(self.cache_gb * 1e9))

    def contents(self) -> tuple[object, ...]:
        """List the settings that batches follow from, for a fingerprint."""
        crop = self.crop_scale if self.augment == "resized_crop" else self.padding
        is_coarse = self.keeps_pictures and self.augment == "resized_crop"
        return (self.window, self.augment, crop, self.flip, self.interpolation, is_coarse)


def parse_datasets(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read NAME=SHARDS pairs into a table of shards by name.

    Raises:
        ConfigError: if one is none, or two have one name.
    """
    shards: dict[str, str] = {}
    for pair in pairs:
        name, _, pattern = pair.partition("=")
        if not _NAME.fullmatch(name) or not pattern:
            raise ConfigError(
                f"dataset must be NAME=SHARDS, such as train='data/train-*.tar', got {pair!r}; a name has up to 64 "
                "letters, digits, dots, underscores and dashes"
            )
        if name in shards:
            raise ConfigError(f"two datasets are called {name!r}; rename one of them")
        shards[name] = pattern
    return shards


def _flag(name: str) -> str:
    return name.replace("_", "-")
