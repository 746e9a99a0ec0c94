"""Samples by position, read by byte offset from local shards."""

import os
from collections import OrderedDict
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from samix.errors import ShardError
from services.shards.index import ShardSet
from services.shards.tar import ShardTable, scan_shard, shown

MAX_OPEN_SHARDS = 64
"""Files a reader holds open. Each process has its own reader, and the usual limit of a process is 1024 files."""

MAX_LABEL_DIGITS = 6
"""A classifier has an output for every number up to the largest label: what is longer is an identifier, no class."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it is stored."""

    shard: Path
    key: str
    image: bytes
    """The encoded picture."""
    label: int

    def __str__(self) -> str:
        return f"sample {self.key} of {self.shard}"


class SampleReader:
    """Random access to the samples of a set; belongs to one thread. Close it, or use it in a `with`.

    Headers of a shard are scanned when its first sample is read, and then kept.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._ends = np.cumsum(shards.samples)
        self._tables: dict[int, ShardTable] = {}
        self._files: OrderedDict[int, FileIO] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleReader, (self._shards,)  # another process opens files of its own

    def __enter__(self) -> "SampleReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; reading again reopens them."""
        while self._files:
            self._files.popitem()[1].close()

    def read(self, position: int) -> Sample:
        """Read one sample.

        Raises:
            ShardError: if the shard is damaged, differs from its index, or the label is no class number.
        """
        shard, row = self._locate(position)
        path, table = self._shards.paths[shard], self._table(shard)
        key, (offset, size) = shown(table.keys[row]), table.ranges[row, :2].tolist()
        image = os.pread(self._file(shard).fileno(), size, offset)
        if len(image) != size:
            raise ShardError(f"{path} ends inside sample {key}, it has been truncated; fetch or write it again")
        return Sample(path, key, image, self.read_label(position))

    def read_label(self, position: int) -> int:
        """Read the label of one sample and leave its picture alone.

        Raises:
            ShardError: as `read`.
        """
        shard, row = self._locate(position)
        table = self._table(shard)
        offset, size = table.ranges[row, 2:].tolist()
        label = os.pread(self._file(shard).fileno(), size, offset).strip()
        if not label.isdigit() or len(label) > MAX_LABEL_DIGITS:
            raise ShardError(
                f"label of sample {shown(table.keys[row])} of {self._shards.paths[shard]} must be a class number in "
                f"ASCII of at most {MAX_LABEL_DIGITS} digits, got {label[:20]!r}; number the classes from 0"
            )
        return int(label)

    def _locate(self, position: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return shard, position - int(self._ends[shard]) + self._shards.samples[shard]

    def _table(self, shard: int) -> ShardTable:
        if shard not in self._tables:
            path, expected = self._shards.paths[shard], self._shards.samples[shard]
            table = scan_shard(path)
            if len(table) != expected:
                raise ShardError(f"{path} holds {len(table)} samples, its index says {expected}; write the index again")
            self._tables[shard] = table
        return self._tables[shard]

    def _file(self, shard: int) -> FileIO:
        file = self._files.pop(shard, None) or FileIO(self._shards.paths[shard])
        self._files[shard] = file  # the last one is the most recently used
        if len(self._files) > MAX_OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()
        return file


def count_classes(shards: ShardSet) -> int:
    """Find the number of classes by reading every label: the largest one plus 1.

    Raises:
        ShardError: as `SampleReader.read_label`.
    """
    with SampleReader(shards) as reader:
        return 1 + max(map(reader.read_label, range(shards.total)))
