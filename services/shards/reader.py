"""Samples by position, read by byte offset from local shards and from cached copies of remote ones."""

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from typing import Any, TypeVar

import numpy as np

from samix.errors import ShardError
from services.shards.index import ShardSet
from services.shards.remote import FetchFailed
from services.shards.shard import shard_name
from services.shards.tar import ShardTable, scan_file, shown

MAX_OPEN_SHARDS = 64
"""Files a reader holds open. Each process has its own reader, and the usual limit of a process is 1024 files."""

MAX_LABEL_DIGITS = 6
"""A classifier has an output for every number up to the largest label: what is longer is an identifier, no class."""

RETRY_PAUSES_S = (0.1, 0.2, 0.4)
"""Before each further attempt to read what a disk refused, seconds."""

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Refusals that say nothing about the shard."""

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample as it is stored."""

    shard: str
    """Its address."""
    key: str
    image: bytes
    """The encoded picture."""
    label: int

    def __str__(self) -> str:
        return f"sample {self.key} of {self.shard}"


class SampleReader:
    """Random access to the samples of a set; belongs to one thread. Close it, or use it in a `with`.

    Headers of a shard are scanned when its first sample is read, and then kept. A shard that cannot be fetched
    or scanned is not tried again until `try_again`: each of its samples would wait as long for nothing.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._ends = np.cumsum(shards.samples)
        self._tables: dict[int, ShardTable] = {}
        self._refused: dict[int, str] = {}
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

    def try_again(self) -> None:
        """Forget which shards could not be used."""
        self._refused.clear()

    def read(self, position: int) -> Sample:
        """Read one sample.

        Raises:
            ShardError: if the shard is missing, damaged or unlike its index, or the label is no class number.
        """
        shard, row = self._locate(position)
        table, address = self._table(shard), self._shards.shards[shard].address
        key, ranges = shown(table.keys[row]), table.ranges[row].tolist()
        image, label = self._retried(shard, lambda file: (_cut(file, *ranges[:2]), _cut(file, *ranges[2:])))
        if (len(image), len(label)) != (ranges[1], ranges[3]):
            raise ShardError(f"{address} ends inside sample {key}, it has been truncated; fetch or write it again")
        return Sample(address, key, image, parse_label(label, key, address))

    def name(self, position: int) -> str:
        """Name one sample for a person: by its key, or where its shard cannot be used by its row there."""
        shard, row = self._locate(position)
        try:
            return shown(self._table(shard).keys[row])
        except ShardError:
            return f"{shard_name(self._shards.shards[shard].address)}[{row}]"

    def read_label(self, position: int) -> int:
        """Read the label of one sample and leave its picture alone.

        Raises:
            ShardError: as `read`.
        """
        shard, row = self._locate(position)
        table = self._table(shard)
        offset, size = table.ranges[row, 2:].tolist()
        label = self._retried(shard, lambda file: _cut(file, offset, size))
        return parse_label(label, shown(table.keys[row]), self._shards.shards[shard].address)

    def _locate(self, position: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, position, side="right"))
        return shard, position - int(self._ends[shard]) + self._shards.samples[shard]

    def _table(self, shard: int) -> ShardTable:
        if shard in self._refused:
            raise ShardError(self._refused[shard])
        if shard not in self._tables:
            try:
                self._tables[shard] = self._retried(shard, lambda file: self._scan(shard, file))
            except ShardError as err:
                self._refused[shard] = str(err)
                raise
        return self._tables[shard]

    def _scan(self, shard: int, file: FileIO) -> ShardTable:
        described, expected = self._shards.shards[shard], self._shards.samples[shard]
        described.check_size(os.fstat(file.fileno()).st_size)
        file.seek(0)
        table = scan_file(file, described.address)
        if len(table) != expected:
            raise ShardError(
                f"{described} holds {len(table)} samples, its index says {expected}; write the index again"
            )
        return table

    def _retried(self, shard: int, read: Callable[[FileIO], Read]) -> Read:
        for pause_s in (*RETRY_PAUSES_S, None):
            try:
                with self._opened(shard) as file:
                    return read(file)
            except FetchFailed as err:
                self._refused[shard] = str(err)
                raise
            except OSError as err:
                if shard in self._files:
                    self._files.pop(shard).close()
                if err.errno in _OF_THE_MACHINE:
                    raise
                if pause_s is None:
                    address = self._shards.shards[shard].address
                    sentence = f"{address} cannot be read ({err.strerror or err}); fetch or write it again"
                    raise ShardError(sentence) from err
                time.sleep(pause_s)
        raise AssertionError  # the last attempt returns or raises

    @contextmanager
    def _opened(self, shard: int) -> Iterator[FileIO]:
        described = self._shards.shards[shard]
        if described.path is None:
            # Opened for each sample: what a reader held open, the cache could not remove.
            with self._shards.cache.open(described) as file:
                yield file
            return
        file = self._files.pop(shard, None) or FileIO(described.path)
        self._files[shard] = file  # the last one is the most recently used
        if len(self._files) > MAX_OPEN_SHARDS:
            self._files.popitem(last=False)[1].close()
        yield file


def parse_label(label: bytes, key: str, address: str) -> int:
    """Read a class number; `key` and `address` name the sample in messages.

    Raises:
        ShardError: if it is none.
    """
    digits = label.strip()
    if not digits.isdigit() or len(digits) > MAX_LABEL_DIGITS:
        raise ShardError(
            f"label of sample {key} of {address} must be a class number in ASCII of at most {MAX_LABEL_DIGITS} digits, "
            f"got {digits[:20]!r}; number the classes from 0"
        )
    return int(digits)


def count_classes(shards: ShardSet) -> int:
    """Find the number of classes: those of the index, or by reading every label the largest one plus 1.

    Raises:
        ShardError: as `SampleReader.read_label`.
    """
    if shards.classes:
        return len(shards.classes)
    with SampleReader(shards) as reader:
        return 1 + max(map(reader.read_label, range(shards.total)))


def _cut(file: FileIO, offset: int, size: int) -> bytes:
    return os.pread(file.fileno(), size, offset)
