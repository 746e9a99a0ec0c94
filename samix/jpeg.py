"""Batches of pictures as JPEGs: a tenth of the bytes of the pixels, and pixels that are a little different.

What is decoded may come from anybody. So each header is read first, and a picture that is not as large as it was said
to be, or could keep a decoder busy beyond its size (a progressive one), is refused before any pixel is decoded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from samix.errors import BadBatch

MAX_SEGMENTS = 32
"""Most segments before the pixels; encoders write about ten."""
MAX_SCANS = 3
"""One for each component is the most that a sequential JPEG needs."""

_START = b"\xff\xd8"
_SCAN = 0xDA
_FRAME_BYTES = 10
"""Of a frame header that are read: marker (2), length (2), precision (1), height (2), width (2), components (1)."""
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # these three are none
_SEQUENTIAL = {0xC0, 0xC1}
_SEGMENTS = {*_FRAMES, 0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE, _SCAN}
"""Markers that may come before the pixels: all have a length, or a decoder would read on elsewhere than we do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JpegBatch:
    """Pictures that are not decoded yet: B of them, all of one size."""

    data: bytes | memoryview
    """The JPEGs, one after another."""
    lengths: Sequence[int]
    """Bytes of each; their sum is that of `data`."""
    shape: tuple[int, int, int, int]
    """[B, 3, H, W] of the pixels, as their sender says."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def dtype(self) -> np.dtype:
        """Of the pixels: uint8."""
        return np.dtype(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return math.prod(self.shape)

    def bounds(self) -> list[tuple[int, int]]:
        """Say where in `data` each picture starts and ends."""
        ends = np.cumsum(self.lengths, dtype=np.int64).tolist()
        return [(end - length, end) for end, length in zip(ends, self.lengths, strict=True)]

    def check(self) -> None:
        """Read every header. Damage behind it is found by whoever decodes.

        Raises:
            BadBatch: if one is no sequential JPEG of three components and the batch's size; names its row.
        """
        bounds, scans, seen = self.bounds(), [], b""
        for row, (start, end) in enumerate(bounds):
            # Pictures of one encoder begin alike, bit for bit; what was found fit needs no second look.
            if not seen or bytes(self.data[start : min(start + len(seen), end)]) != seen:
                seen = self._read_header(row, start, end)
            scans.append(start + len(seen) - _FRAME_BYTES)
        self._check_scans(scans, [end for _, end in bounds])

    def _read_header(self, row: int, start: int, end: int) -> bytes:
        """Return all of a picture that decides whether it is fit, up to what is read of its first scan."""
        picture = bytes(self.data[start:end])
        try:
            return picture[: _header_size(picture, *self.shape[2:])]
        except ValueError as error:
            raise _refusal(row, str(error)) from error

    def _check_scans(self, starts: Sequence[int], ends: Sequence[int]) -> None:
        data = np.frombuffer(self.data, np.uint8)
        markers = np.flatnonzero((data[:-1] == 0xFF) & (data[1:] == _SCAN))
        counts = np.searchsorted(markers, np.array(ends) - 1) - np.searchsorted(markers, starts)
        for row in np.flatnonzero(counts > MAX_SCANS).tolist():
            raise _refusal(row, f"it has more than {MAX_SCANS} scans; send a plain one")


def encode_images(pixels: np.ndarray, quality: int) -> list[bytes]:
    """Compress each image.

    Args:
        pixels: uint8 [B, 3, H, W].
        quality: 1 to 100.

    Raises:
        BadBatch: if the pixels are not uint8, or an image is larger than a JPEG can be.
    """
    from torchvision.io import encode_jpeg  # takes seconds to import, and most clients send raw pixels

    if pixels.dtype != np.uint8:
        raise BadBatch(
            f"only uint8 images travel as JPEG, got {pixels.dtype}; give uint8 images, or take encoding 'raw'"
        )
    try:
        pictures = encode_jpeg(list(torch.from_numpy(pixels)), quality)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(", ", 2)[-1]  # after the function and the line of its source
        raise BadBatch(f"images of {list(pixels.shape)} cannot become JPEGs ({reason})") from error
    return [picture.numpy().tobytes() for picture in pictures]


def _header_size(picture: bytes, height: int, width: int) -> int:
    """Count the bytes that were read to find a JPEG fit to be decoded.

    Raises:
        ValueError: why it is not.
    """
    if not picture.startswith(_START):
        raise ValueError(f"it is no JPEG, it begins with {picture[:4].hex() or 'nothing'}")
    frame, at = None, len(_START)
    for _ in range(MAX_SEGMENTS):
        segment = picture[at : at + _FRAME_BYTES]
        length = int.from_bytes(segment[2:4])
        if len(segment) < _FRAME_BYTES or segment[0] != 0xFF or segment[1] not in _SEGMENTS or length < 2:
            raise ValueError("its header is cut or damaged")
        if segment[1] == _SCAN:
            break
        if segment[1] in _FRAMES:
            frame = segment
        at += 2 + length
    else:
        raise ValueError(f"it has more than {MAX_SEGMENTS} segments before its pixels; send it without metadata")
    if frame is None:
        raise ValueError("its header is cut or damaged")
    _check_frame(frame, height, width)
    return at + _FRAME_BYTES


def _check_frame(frame: bytes, height: int, width: int) -> None:
    if frame[1] not in _SEQUENTIAL:
        raise ValueError("it is progressive, lossless or arithmetic-coded; send a baseline JPEG")
    if frame[4] != 8 or frame[9] != 3:
        raise ValueError(f"it has {frame[9]} components of {frame[4]} bits; send 3 of 8 bits")
    size = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    if size != (height, width):
        raise ValueError(f"it is {size[0]} x {size[1]}, shape says {height} x {width}")


def _refusal(row: int, reason: str) -> BadBatch:
    return BadBatch(f"image {row} is refused: {reason}", field="pixels")
