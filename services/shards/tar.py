"""Where the samples of one tar shard lie: `KEY.(jpg|jpeg|png|webp)` beside `KEY.cls`, anything else is ignored.

As in WebDataset a key ends at the first dot of the file's name, so `a/0001.seg.png` is no image of key `a/0001`.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from samix.errors import ShardError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSION = "cls"


@dataclass(frozen=True, slots=True)
class ShardTable:
    """Keys and byte ranges of one shard's samples, compact because every worker keeps those of all shards."""

    keys: np.ndarray
    """bytes [N], as stored; `shown` makes text of one."""
    ranges: np.ndarray
    """int64 [N, 4]: offset and size of the image, offset and size of the label."""

    def __len__(self) -> int:
        return len(self.keys)


def shown(name: str | bytes) -> str:
    """Make a name printable that need not be UTF-8: names in old archives are Latin-1."""
    return (name if isinstance(name, bytes) else _stored(name)).decode(errors="backslashreplace")


def scan_shard(path: Path) -> ShardTable:
    """Read the headers of a shard; its images are not touched.

    Raises:
        ShardError: if the file is no tar, is truncated, holds no samples, or one of them lacks image or label.
    """
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    for member in _members(path):
        key, extension = _split_name(member.name)
        found = images if extension in IMAGE_EXTENSIONS else labels if extension == LABEL_EXTENSION else {}
        if key in found:
            names = f"{shown(member.name)} and {shown(found[key].name)}"
            raise ShardError(f"{path} holds {names} for one sample; keep one of them")
        found[key] = member
    _check_pairs(path, images, labels)
    ranges = [(*_range(image), *_range(labels[key])) for key, image in images.items()]
    return ShardTable(keys=np.array([_stored(key) for key in images]), ranges=np.array(ranges, np.int64))


def _members(path: Path) -> list[tarfile.TarInfo]:
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            members = [member for member in tar if member.isreg()]
            _check_end(file, path)
    except (tarfile.TarError, ValueError, OverflowError) as err:  # the last two for sizes beyond 64 bits
        raise ShardError(f"{path} is no complete tar file ({err}); fetch or write it again") from err
    return members


def _check_end(file: BinaryIO, path: Path) -> None:
    # tarfile takes a file cut between two members for a whole one.
    file.seek(-min(1024, path.stat().st_size), 2)
    if any(file.read()):
        raise ShardError(f"{path} lacks the end mark of a tar file, so it is truncated; fetch or write it again")


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _check_pairs(path: Path, images: dict[str, tarfile.TarInfo], labels: dict[str, tarfile.TarInfo]) -> None:
    if missing := images.keys() - labels.keys():
        key = shown(min(missing))
        raise ShardError(f"sample {key} of {path} has no {key}.{LABEL_EXTENSION}; write the shard again with labels")
    if missing := labels.keys() - images.keys():
        key, known = shown(min(missing)), "|".join(IMAGE_EXTENSIONS)
        raise ShardError(f"sample {key} of {path} has no {key}.({known}); write the shard again with images")
    if not images:
        raise ShardError(f"{path} holds no samples; leave it out or write it again")


def _stored(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # tarfile's way to keep bytes that are no UTF-8


def _range(member: tarfile.TarInfo) -> tuple[int, int]:
    return member.offset_data, member.size
