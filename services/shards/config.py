"""What a program loads: shards, sizes, augmentation and workers."""

from dataclasses import dataclass
from typing import Literal

from samix.errors import ConfigError
from services.shards.augment import CentreCrop, PaddedCrop, ResizedCrop, Transform


@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """How images are loaded."""

    image_size: int = 32
    """Side of the images the model sees, pixels."""
    global_batch: int = 128
    """Samples per step of all ranks together; stays the same when the number of ranks changes."""
    augment: Literal["crop", "resized_crop", "none"] = "crop"
    """crop: padded random crop (CIFAR); resized_crop: random area and shape (ImageNet); none: as for evaluation."""
    flip: bool = True
    """Mirror every second training image; not for digits or letters. Has no effect with augment none."""
    padding: int = 4
    """Border of augment crop on each side, pixels, reflected."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that augment resized_crop keeps."""
    eval_resize: int = 0
    """Shorter side before the evaluation's centre crop, pixels; 256 for 224 px ImageNet. 0 is image_size."""
    window: int = 16
    """Shards whose samples are shuffled together. More mixes better, fewer reads disks more evenly."""
    lanes: int = 0
    """Parts an epoch is cut into; the world size must divide it, and it the batch. 0 chooses by the batch."""
    num_workers: int = 2
    """Processes per rank that decode; 0 decodes in the training process."""
    prefetch: int = 4
    """Batches each worker prepares ahead."""

    def __post_init__(self) -> None:
        for name in ("image_size", "global_batch", "window", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("padding", "lanes", "num_workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.augment == "crop" and self.padding >= self.image_size:
            raise ConfigError(f"padding must be smaller than image_size {self.image_size}, got {self.padding}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"crop_scale must be two shares, 0 < smallest <= largest <= 1, got {self.crop_scale}")
        if self.eval_resize and self.eval_resize < self.image_size:
            raise ConfigError(f"eval_resize must be 0 or at least image_size {self.image_size}, got {self.eval_resize}")

    def train_transform(self) -> Transform:
        """Make what training does to a picture."""
        if self.augment == "crop":
            return PaddedCrop(size=self.image_size, padding=self.padding, flip=self.flip)
        if self.augment == "resized_crop":
            return ResizedCrop(size=self.image_size, scale=self.crop_scale, flip=self.flip)
        return self.eval_transform()

    def eval_transform(self) -> Transform:
        """Make what evaluation does to a picture."""
        return CentreCrop(size=self.image_size, resize=self.eval_resize or self.image_size)


@dataclass(frozen=True, kw_only=True)
class LabelledShards:
    """Where images are and how many classes they have."""

    train: str
    """Shards to train on: a path, a glob or a pattern like train-{000000..000003}.tar (quote it)."""
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
