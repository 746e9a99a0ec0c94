"""Decoded pictures in memory, so that small datasets are decoded once.

Pictures stay until memory is needed for another size or dataset and nobody uses theirs: an epoch comes by each of them
once, so leaving out those used longest ago would leave out all.
"""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from samix.framing import empty_buffer
from services.shards.decoding import DecodedSample

_BLOCK_BYTES = 4 << 20
"""Memory is taken in blocks of whole pictures, about so large."""


@dataclass(frozen=True, slots=True)
class KeptPicture:
    """One picture in memory, which nobody changes any more."""

    pixels: np.ndarray
    """uint8 [3, K, K]."""
    sample: DecodedSample
    """What else is known of it."""


class Shelf:
    """Pictures of one dataset at one size, by position. Safe for threads."""

    def __init__(self, memory: "PictureMemory", side: int) -> None:
        self.num_users = 0
        """Subscriptions that take pictures from it; of `PictureMemory`, under its lock."""
        self.num_bytes = 0
        """Memory it has; likewise."""
        self._memory = memory
        self._side = side
        self._lock = threading.Lock()
        self._pictures: dict[int, KeptPicture] = {}
        self._block: list[np.ndarray] = []

    def find(self, position: int) -> KeptPicture | None:
        """Look a picture up."""
        return self._pictures.get(position)

    def put(self, position: int, pixels: np.ndarray, sample: DecodedSample) -> KeptPicture | None:
        """Keep a copy of a picture, uint8 [3, K, K]; None if there is no room."""
        with self._lock:
            if position not in self._pictures:
                if not self._block and not self._grow():
                    return None
                place = self._block.pop()
                place[:] = pixels
                self._pictures[position] = KeptPicture(place, sample)
            return self._pictures[position]

    def _grow(self) -> bool:
        picture_bytes = 3 * self._side**2
        count = max(1, _BLOCK_BYTES // picture_bytes)
        if not self._memory.grant(self, count * picture_bytes):
            return False
        block = empty_buffer(count * picture_bytes).reshape(count, 3, self._side, self._side)
        self._block = list(block[::-1])  # taken from the end
        return True


class PictureMemory:
    """Bounds what all shelves hold together. Safe for threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        """Most bytes of all shelves."""
        self._lock = threading.Lock()
        self._shelves: dict[Hashable, Shelf] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all shelves."""
        return sum(shelf.num_bytes for shelf in list(self._shelves.values()))

    @contextmanager
    def shelf(self, key: Hashable, side: int) -> Iterator[Shelf]:
        """Use the shelf of that key during the block; its pictures have `side` pixels a side."""
        with self._lock:
            shelf = self._shelves.pop(key, None) or Shelf(self, side)
            self._shelves[key] = shelf  # the last one is the most recently used
            shelf.num_users += 1
        try:
            yield shelf
        finally:
            with self._lock:
                shelf.num_users -= 1

    def grant(self, shelf: Shelf, num_bytes: int) -> bool:
        """Give a shelf so much more memory, at the cost of shelves that nobody uses; False if there is none."""
        with self._lock:
            for key, other in list(self._shelves.items()):
                if self.num_bytes + num_bytes <= self.max_bytes:
                    break
                if not other.num_users:
                    del self._shelves[key]
            if self.num_bytes + num_bytes > self.max_bytes:
                return False
            shelf.num_bytes += num_bytes
            return True
