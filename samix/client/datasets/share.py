"""What one consumer asks for: its share of one epoch of a dataset, mixed or not."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict

from samix.errors import ConfigError, InputError
from samix.mixer.v1 import dataset_pb2 as pb

Format = Literal["uint8", "float16", "jpeg"]
Augmentation = Literal["crop_flip", "center"]

_FORMATS: dict[Format, pb.BatchFormat] = {
    "uint8": pb.BATCH_FORMAT_UINT8,
    "float16": pb.BATCH_FORMAT_FLOAT16,
    "jpeg": pb.BATCH_FORMAT_JPEG,
}
_AUGMENTATIONS: dict[Augmentation, pb.Augmentation] = {
    "crop_flip": pb.AUGMENTATION_CROP_FLIP,
    "center": pb.AUGMENTATION_CENTER,
}
_JPEG_SPARE_BYTES = 1 << 16
"""Of a JPEG beyond twice its pixels: headers."""


class ShareOptions(TypedDict, total=False):
    """The settings of a `Share` that a caller gives by name; see there."""

    batch_size: Required[int]
    image_size: Required[int]
    seed: int
    epoch: int
    consumer: int
    num_consumers: int
    format: Format
    jpeg_quality: int
    augmentation: Augmentation
    drop_last: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One consumer's part of an epoch. All consumers of an epoch ask for the same but for `consumer`."""

    dataset: str
    """Name on the server."""
    mixer: str | None
    """Name of the mixer on the server; None leaves the pictures unmixed."""
    version: str = ""
    """Weights version to insist on; empty takes the one that is loaded."""
    batch_size: int
    """Images of a batch; the last ones of an epoch may be smaller."""
    image_size: int
    """Side of the square images, in pixels."""
    seed: int = 0
    """Of order, augmentation and mixing."""
    epoch: int = 0
    """Number of the epoch, from 0."""
    consumer: int = 0
    """Which of the consumers this is, from 0."""
    num_consumers: int = 1
    """How many share the epoch: each sample goes to exactly one of them, once."""
    format: Format = "uint8"
    """How images travel: `uint8`; `float16`, with finer steps of mixed colours; `jpeg`, a tenth of the bytes."""
    jpeg_quality: int = 90
    """Of JPEGs, 1 to 100."""
    augmentation: Augmentation = "crop_flip"
    """`crop_flip`: a random crop and a random mirroring, new in each epoch; `center`: the middle, always the same."""
    drop_last: bool = False
    """Leave out the last samples that would not give every consumer one more full batch: equally many of one size."""

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigError("dataset must be a name of the server; `list_datasets()` tells which it has")
        if self.mixer == "":
            raise InputError(
                "which mixer shall mix the batches? connect(..., mixer=NAME), or subscribe(..., mix=False) for the "
                "pictures as they are"
            )
        _check_range("batch_size", self.batch_size, 1, 1 << 16)
        _check_range("image_size", self.image_size, 1, 1 << 14)
        _check_range("jpeg_quality", self.jpeg_quality, 1, 100)
        _check_range("seed", self.seed, 0, (1 << 64) - 1)
        _check_range("epoch", self.epoch, 0, (1 << 32) - 1)
        _check_range("num_consumers", self.num_consumers, 1, 1 << 20)
        _check_range("consumer", self.consumer, 0, self.num_consumers - 1)
        if self.format not in _FORMATS:
            raise ConfigError(f"format must be one of {', '.join(_FORMATS)}, got {self.format!r}")
        if self.augmentation not in _AUGMENTATIONS:
            raise ConfigError(f"augmentation must be one of {', '.join(_AUGMENTATIONS)}, got {self.augmentation!r}")

    def __str__(self) -> str:
        return f"{self.dataset!r} epoch {self.epoch} consumer {self.consumer} of {self.num_consumers}"

    def max_bytes(self, num_images: int) -> int:
        """Most bytes of so many images: exactly those, unless they are JPEGs."""
        pixels = math.prod((num_images, 3, self.image_size, self.image_size))
        return 2 * pixels + num_images * _JPEG_SPARE_BYTES if self.format == "jpeg" else self.itemsize * pixels

    @property
    def itemsize(self) -> int:
        """Bytes of a value, where images are no JPEGs."""
        return 2 if self.format == "float16" else 1

    def message(self, token: str, cursor: pb.Cursor | None) -> pb.Subscription:
        """Fill the message that asks for it, from `cursor` on."""
        return pb.Subscription(
            dataset=self.dataset,
            mixer=self.mixer or "",
            version=self.version,
            batch_size=self.batch_size,
            image_size=self.image_size,
            consumer=self.consumer,
            num_consumers=self.num_consumers,
            seed=self.seed,
            epoch=self.epoch,
            format=_FORMATS[self.format],
            jpeg_quality=self.jpeg_quality,
            augmentation=_AUGMENTATIONS[self.augmentation],
            drop_last=self.drop_last,
            token=token,
            cursor=cursor,
        )


def _check_range(name: str, value: Any, least: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} must be a whole number in {least}..{most}, got {value!r}")
