"""Our loader and its peers: training batches of ImageNet's augmentation, without end.

The peers are webdataset with torchvision's transforms and torch's DataLoader as their manuals show them, decoding by
Pillow or by torchvision.
"""

import io
import tarfile
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2
from webdataset.compat import WebDataset

from benchmarks.repeated_shards import link_repeatedly, local_shards
from samix.errors import ConfigError
from services.shards.config import DataConfig
from services.shards.index import open_shards
from services.shards.loader import train_loader
from services.shards.reader import count_classes
from services.shards.tar import scan_shard

BATCH_SIZE = 64
SIDE = 224
PREFETCH = 2
"""Batches each worker prepares ahead; torch's default."""
OURS = "samix"
_SHUFFLE_BUFFER = 1000
"""Samples; what webdataset's manual shows."""

Batches = Generator[Tensor, None, None]
"""uint8 [BATCH_SIZE, 3, SIDE, SIDE], without end; closing it stops the loader and its workers."""

_AUGMENT = v2.Compose([v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()])


def repeat_shards(pattern: str, folder: Path, times: int) -> str:
    """Make a long epoch of few shards: links to them, each so many times.

    Returns:
        A pattern with a range in braces, which every loader here reads.

    Raises:
        ShardError: if there are none.
        ConfigError: if one is not a local file, or holds no .jpg, which is all that the peers read.
    """
    shards = local_shards(pattern)
    for shard in shards:
        _check_photos(shard)
    return link_repeatedly(shards, folder, times)


def openers(shards: str, *, num_workers: int) -> Mapping[str, Callable[[], Batches]]:
    """Name every loader over the same shards; none is started."""
    return {
        OURS: lambda: _ours(shards, num_workers),
        "webdataset, Pillow": lambda: _peer(shards, num_workers, _view_by_pillow),
        "webdataset, torchvision": lambda: _peer(shards, num_workers, _view_by_torchvision),
    }


def _check_photos(shard: Path) -> None:
    scan_shard(shard)  # says what is wrong with a shard that neither side could read
    with tarfile.open(shard) as tar:
        if not any(name.endswith(".jpg") for name in tar.getnames()):
            raise ConfigError(f"{shard} holds no .jpg, which is all that webdataset is told to read; name photographs")


def _ours(shards: str, num_workers: int) -> Batches:
    config = DataConfig(
        train=shards,
        val=shards,
        num_classes=count_classes(open_shards(shards)),
        image_size=SIDE,
        augment="resized_crop",
        global_batch=BATCH_SIZE,
        num_workers=num_workers,
        prefetch=PREFETCH,
    )
    with train_loader(config, seed=0) as loader:
        epoch = 0
        while True:
            loader.set_epoch(epoch)
            for batch in loader:
                yield batch.images
            epoch += 1


def _peer(shards: str, num_workers: int, view: Callable[[bytes], Tensor]) -> Batches:
    samples: Any = WebDataset(shards, shardshuffle=100, seed=0)  # its methods are made at run time
    shuffled = samples.repeat().shuffle(_SHUFFLE_BUFFER)
    batches = shuffled.to_tuple("jpg", "cls").map_tuple(view, int).batched(BATCH_SIZE, partial=False)
    loader = DataLoader(
        batches, batch_size=None, num_workers=num_workers, prefetch_factor=PREFETCH if num_workers else None
    )
    for images, _labels in loader:
        yield images


def _view_by_pillow(image: bytes) -> Tensor:
    return v2.functional.pil_to_tensor(_AUGMENT(Image.open(io.BytesIO(image)).convert("RGB")))


def _view_by_torchvision(image: bytes) -> Tensor:
    return _AUGMENT(decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), mode=ImageReadMode.RGB))
