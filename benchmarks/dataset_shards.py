"""A shard of made pictures, about as hard to decode as crops of photos."""

import io
import tarfile
from pathlib import Path

import torch
import torch.nn.functional as F

from samix.jpeg import encode_images
from samix.mixing.plan import generator_for

_NUM_PICTURES = 64
"""Pictures that differ; a larger shard has each of them several times, under keys of its own."""
_QUALITY = 90
_NUM_CLASSES = 10


def write_shard(path: Path, num_samples: int, side: int) -> None:
    """Write JPEGs of smooth noise with labels 0 to 9, keys 00000000 and so on.

    Args:
        path: of the tar file.
        num_samples: how many.
        side: of the pictures, pixels.
    """
    coarse = torch.rand(_NUM_PICTURES, 3, side // 5, side // 5, generator=generator_for("bench"))
    smooth = F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    pictures = encode_images(smooth.mul(255).byte().numpy(), _QUALITY)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(num_samples):
            _add(tar, f"{number:08d}.jpg", pictures[number % _NUM_PICTURES])
            _add(tar, f"{number:08d}.cls", str(number % _NUM_CLASSES).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
