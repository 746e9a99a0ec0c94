"""Small real shards for tests, and where the real data lies."""

import io
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encoded(image: np.ndarray | Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """Encode a picture, for example uint8 [H, W, 3]."""
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, image_format, **options)
    return file.getvalue()


def noise(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    """Draw a picture, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def write_tar(path: Path, members: Mapping[str, bytes], *, tar_format: int = tarfile.DEFAULT_FORMAT) -> Path:
    """Write a tar file with these members."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_noise_shards(folder: Path, counts: list[int], *, num_classes: int = 3, side: int = 8) -> str:
    """Write shards of random pictures; picture i is noise(i), its label i % num_classes. Returns a glob."""
    first = 0
    for number, count in enumerate(counts):
        members: dict[str, bytes] = {}
        for sample in range(first, first + count):
            members[f"{sample:04d}.png"] = encoded(noise(sample, side, side))
            members[f"{sample:04d}.cls"] = str(sample % num_classes).encode()
        write_tar(folder / f"noise-{number:06d}.tar", members)
        first += count
    return str(folder / "noise-*.tar")


def real_data() -> Path:
    """Find the real data, or skip."""
    root = Path(os.environ.get("SAMIX_TEST_DATA", Path(__file__).parents[2] / "../shared/data"))
    if not root.is_dir():
        pytest.skip(f"no real data at {root}; set SAMIX_TEST_DATA")
    return root
