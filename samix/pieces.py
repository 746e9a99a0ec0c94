"""Bulk bytes that come in pieces, and stay where they came until somebody needs them in one place."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic

import numpy as np

from samix.framing import MessageT, as_bytes, empty_buffer

_LARGE_BYTES = 64 << 10
"""From here on a piece is kept as it is; below, objects would weigh as much as the bytes they hold."""


class Pieces:
    """Grows by `add`. Small pieces are put together, so that bytes which come one by one take no object each."""

    def __init__(self) -> None:
        self._parts: list[memoryview | bytearray] = []
        self._num_bytes = 0

    def __len__(self) -> int:
        """Count the bytes."""
        return self._num_bytes

    def add(self, piece: memoryview) -> None:
        """Take the next bytes, of format `B`; a large piece is not copied, so it must not change."""
        self._num_bytes += len(piece)
        if len(piece) >= _LARGE_BYTES:
            self._parts.append(piece)
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(last, bytearray):
            last += piece
        else:
            self._parts.append(bytearray(piece))

    def __iter__(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the place of some bytes among all, and those bytes, uint8."""
        start = 0
        for part in self._parts:
            yield slice(start, start + len(part)), np.frombuffer(part, np.uint8)
            start += len(part)

    def join(self) -> memoryview:
        """Return all bytes in one place; a piece that came alone stays where it is."""
        if len(self._parts) == 1:
            return memoryview(self._parts[0])
        whole = empty_buffer(self._num_bytes)
        for place, values in self:
            whole[place] = values
        return as_bytes(whole)


@dataclass(frozen=True, slots=True)
class Scattered(Generic[MessageT]):
    """A message, and the bulk bytes that belong into its last field; as `Framed`, but in pieces."""

    message: MessageT
    """All other fields."""
    bulk: Pieces
    """The bytes."""

    @property
    def num_bytes(self) -> int:
        """Size on the wire, but for a few bytes of framing."""
        return self.message.ByteSize() + len(self.bulk)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScatteredPixels:
    """Pixels of a batch in the pieces they came in: whoever computes puts them where it wants them, at one copy."""

    pieces: Pieces
    """Their bytes, C order."""
    shape: tuple[int, int, int, int]
    """[B, 3, H, W]."""

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels: uint8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return math.prod(self.shape)

    def copy_to(self, out: np.ndarray) -> None:
        """Write the pixels into [B, 3, H, W], contiguous, uint8 or any type of numbers."""
        values = out.reshape(-1)
        for place, pixels in self.pieces:
            np.copyto(values[place], pixels)

    def join(self) -> np.ndarray:
        """Put them in one place: uint8 [B, 3, H, W]."""
        return np.frombuffer(self.pieces.join(), np.uint8).reshape(self.shape)


def as_array(pixels: np.ndarray | ScatteredPixels) -> np.ndarray:
    """Return pixels in one place: [B, 3, H, W]; copied only if they lie in several pieces."""
    return pixels.join() if isinstance(pixels, ScatteredPixels) else pixels
