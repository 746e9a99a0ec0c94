"""How a program sees pictures: sizes and augmentation, by config."""

from dataclasses import dataclass
from typing import Literal

from samix.errors import ConfigError
from services.shards.augment import CentreCrop, ChangedCrop, PaddedCrop, ResizedCrop, Transform
from services.shards.changes import Change, ColourJitter, RandomErasing
from services.shards.rand_augment import RandAugment, is_policy
from services.shards.resample import Interpolation


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How pictures are cropped, resized and changed."""

    image_size: int = 32
    """Side of the images the model is trained on, pixels."""
    augment: Literal["crop", "resized_crop", "none"] = "crop"
    """crop: padded random crop (CIFAR); resized_crop: random area and shape (ImageNet); none: as for evaluation."""
    flip: bool = True
    """Mirror every second training image; not for digits or letters. Has no effect with augment none."""
    padding: int = 4
    """Border of augment crop on each side, pixels, reflected."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the area that augment resized_crop keeps."""
    interpolation: Interpolation = "bilinear"
    """Between pixels where a picture is resized, in training and evaluation."""
    rand_augment: str = ""
    """RandAugment after the crop, in timm's words: rand-m9-mstd0.5-inc1; empty is none."""
    color_jitter: float = 0
    """Strength of random brightness, contrast and saturation, after RandAugment; timm itself has one or the other."""
    erase: float = 0
    """Share of the training images in which a random rectangle becomes noise, last of all."""
    eval_size: int = 0
    """Side of the images the model is evaluated on, pixels; 0 is image_size."""
    eval_resize: int = 0
    """Shorter side before the evaluation's centre crop, pixels; 256 for 224 px ImageNet. 0 is the evaluation's size."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"image_size must be at least 1, got {self.image_size}")
        self._check_crops()
        self._check_changes()
        if self.eval_size < 0:
            raise ConfigError(f"eval_size must not be negative, got {self.eval_size}; 0 is image_size")
        if self.eval_resize and self.eval_resize < (self.eval_size or self.image_size):
            name = "eval_size" if self.eval_size else "image_size"
            raise ConfigError(
                f"eval_resize must be 0 or at least {name} {self.eval_size or self.image_size}, got {self.eval_resize}"
            )

    def train_transform(self) -> Transform:
        """Make what training does to a picture."""
        if self.augment == "none":
            return self.eval_transform()
        crop = self._crop()
        changes = self._changes()
        return ChangedCrop(crop=crop, changes=changes) if changes else crop

    def eval_transform(self) -> Transform:
        """Make what evaluation does to a picture."""
        size = self.eval_size or self.image_size
        return CentreCrop(size=size, resize=self.eval_resize or size, interpolation=self.interpolation)

    def _crop(self) -> PaddedCrop | ResizedCrop:
        if self.augment == "crop":
            return PaddedCrop(
                size=self.image_size, padding=self.padding, flip=self.flip, interpolation=self.interpolation
            )
        return ResizedCrop(
            size=self.image_size, scale=self.crop_scale, flip=self.flip, interpolation=self.interpolation
        )

    def _changes(self) -> tuple[Change, ...]:
        changes: list[Change] = []
        if self.rand_augment:
            changes.append(RandAugment(policy=self.rand_augment, interpolation=self.interpolation))
        if self.color_jitter:
            changes.append(ColourJitter(strength=self.color_jitter))
        if self.erase:
            changes.append(RandomErasing(probability=self.erase))
        return tuple(changes)

    def _check_crops(self) -> None:
        if self.padding < 0:
            raise ConfigError(f"padding must not be negative, got {self.padding}")
        if self.augment == "crop" and self.padding >= self.image_size:
            raise ConfigError(f"padding must be smaller than image_size {self.image_size}, got {self.padding}")
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ConfigError(f"crop_scale must be two shares, 0 < smallest <= largest <= 1, got {self.crop_scale}")

    def _check_changes(self) -> None:
        if self.rand_augment and not is_policy(self.rand_augment):
            raise ConfigError(
                f"rand_augment must read like rand-m9-mstd0.5-inc1 or be empty, got {self.rand_augment!r}"
            )
        if not 0 <= self.color_jitter <= 1:
            raise ConfigError(f"color_jitter must lie in 0..1, got {self.color_jitter}")
        if not 0 <= self.erase <= 1:
            raise ConfigError(f"erase must be a share in 0..1, got {self.erase}")
        if self.augment == "none":
            self._check_unchanged()

    def _check_unchanged(self) -> None:
        for name in ("rand_augment", "color_jitter", "erase", "eval_size"):
            if getattr(self, name):
                raise ConfigError(
                    f"augment none trains on what evaluation sees, got {name} {getattr(self, name)}; leave it out, or "
                    "choose augment crop or resized_crop"
                )
