"""Where the samples of one tar shard lie: `KEY.(jpg|jpeg|png|webp)` beside `KEY.cls`, anything else is ignored.

As in WebDataset a key ends at the first dot of the file's name, so `a/0001.seg.png` is no image of key `a/0001`.
"""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

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


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with one sample of a shard."""

    key: str
    """Of the sample, made printable; empty if it is the shard itself."""
    sentence: str
    """With the cure."""


def shown(name: str | bytes) -> str:
    """Make a name printable that need not be UTF-8: names in old archives are Latin-1."""
    return (name if isinstance(name, bytes) else _stored(name)).decode(errors="backslashreplace")


def scan_shard(path: Path) -> ShardTable:
    """Read the headers of a shard; its images are not touched.

    Raises:
        ShardError: if the file is no tar, is truncated, holds no samples, or one of them lacks image or label.
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        return scan_file(file, str(path))


def scan_file(file: IO[bytes], address: str) -> ShardTable:
    """Read the headers of an open shard, as `scan_shard`; `address` names it in messages."""
    table, faults = inspect_file(file, address)
    for fault in faults:
        raise ShardError(fault.sentence)
    return table


def inspect_file(file: IO[bytes], address: str) -> tuple[ShardTable, list[Fault]]:
    """Read the headers of an open shard and tell all that is wrong with its samples, the whole ones aside.

    Raises:
        ShardError: if the file is no tar or is truncated.
        OSError: if it cannot be read.
    """
    faults: list[Fault] = []
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, tarfile.TarInfo] = {}
    for member in _members(file, address):
        key, extension = _split_name(member.name)
        found = images if extension in IMAGE_EXTENSIONS else labels if extension == LABEL_EXTENSION else {}
        if key in found:
            names = f"{shown(member.name)} and {shown(found[key].name)}"
            faults.append(Fault(shown(key), f"{address} holds {names} for one sample; keep one of them"))
        found[key] = member
    faults += _unpaired(address, images, labels)
    pairs = {key: (*_range(image), *_range(labels[key])) for key, image in images.items() if key in labels}
    keys = np.array([_stored(key) for key in pairs], np.bytes_)
    return ShardTable(keys=keys, ranges=np.array(list(pairs.values()), np.int64).reshape(-1, 4)), faults


def _members(file: IO[bytes], address: str) -> list[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            members = [member for member in tar if member.isreg()]
        _check_end(file, address)
    except (tarfile.TarError, ValueError, OverflowError) as err:  # the last two for sizes beyond 64 bits
        if isinstance(err, ShardError):
            raise
        raise ShardError(f"{address} is no complete tar file ({err}); fetch or write it again") from err
    return members


def _check_end(file: IO[bytes], address: str) -> None:
    # tarfile takes a file cut between two members for a whole one.
    file.seek(-min(1024, file.seek(0, os.SEEK_END)), os.SEEK_END)
    if any(file.read()):
        raise ShardError(f"{address} lacks the end mark of a tar file, so it is truncated; fetch or write it again")


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()


def _unpaired(address: str, images: dict[str, tarfile.TarInfo], labels: dict[str, tarfile.TarInfo]) -> Iterator[Fault]:
    for key in map(shown, sorted(images.keys() - labels.keys())):
        missing = f"{key}.{LABEL_EXTENSION}"
        yield Fault(key, f"sample {key} of {address} has no {missing}; write the shard again with labels")
    for key in map(shown, sorted(labels.keys() - images.keys())):
        missing = f"{key}.({'|'.join(IMAGE_EXTENSIONS)})"
        yield Fault(key, f"sample {key} of {address} has no {missing}; write the shard again with images")
    if not images and not labels:
        yield Fault("", f"{address} holds no samples; leave it out or write it again")


def _stored(name: str) -> bytes:
    return name.encode(errors="surrogateescape")  # tarfile's way to keep bytes that are no UTF-8


def _range(member: tarfile.TarInfo) -> tuple[int, int]:
    return member.offset_data, member.size
