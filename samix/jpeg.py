"""Batches of pictures as JPEGs: a tenth of the bytes of the pixels, and pixels that are a little different.

What is decoded may come from anybody. So each header is read first, and a picture that is not as large as it was said
to be, or could keep a decoder busy beyond its size (a progressive one), is refused before any pixel is decoded.
"""

from collections.abc import Sequence

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
        raise BadBatch(f"images of {list(pixels.shape)} cannot become JPEGs ({_reason(error)})") from error
    return [picture.numpy().tobytes() for picture in pictures]


def decode_images(data: bytes, lengths: Sequence[int], height: int, width: int) -> np.ndarray:
    """Decompress images that lie one after another.

    Damage that leaves the structure whole goes unnoticed: some pixels are then wrong.

    Args:
        data: the JPEGs.
        lengths: bytes of each; their sum is that of `data`.
        height: of every image, pixels.
        width: of every image, pixels.

    Returns:
        uint8 [B, 3, H, W].

    Raises:
        BadBatch: if one is no sequential JPEG of three components and that size, or is damaged; names its row.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    pictures = [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]
    for row, picture in enumerate(pictures):  # all of them, before the work of decoding the first
        if reason := _unfit(picture, height, width):
            raise BadBatch(f"image {row} is refused: {reason}")
    pixels = np.empty((len(pictures), 3, height, width), np.uint8)
    for row, picture in enumerate(pictures):
        try:
            image = decode_jpeg(torch.frombuffer(bytearray(picture), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError as error:
            raise BadBatch(f"image {row} is a damaged JPEG ({_reason(error)}); send it again") from error
        pixels[row] = np.asarray(image)
    return pixels


def _unfit(picture: bytes, height: int, width: int) -> str:
    """Say why a JPEG is not decoded; empty if it may be."""
    if not picture.startswith(_START):
        return f"it is no JPEG, it begins with {picture[:4].hex() or 'nothing'}"
    frame, at = None, len(_START)
    for _ in range(MAX_SEGMENTS):
        segment = picture[at : at + _FRAME_BYTES]
        length = int.from_bytes(segment[2:4])
        if len(segment) < _FRAME_BYTES or segment[0] != 0xFF or segment[1] not in _SEGMENTS or length < 2:
            return "its header is cut or damaged"
        if segment[1] == _SCAN:
            break
        if segment[1] in _FRAMES:
            frame = segment
        at += 2 + length
    else:
        return f"it has more than {MAX_SEGMENTS} segments before its pixels; send it without metadata"
    if frame is None:
        return "its header is cut or damaged"
    if picture.count(bytes((0xFF, _SCAN)), at) > MAX_SCANS:
        return f"it has more than {MAX_SCANS} scans; send a plain one"
    return _unfit_frame(frame, height, width)


def _unfit_frame(frame: bytes, height: int, width: int) -> str:
    if frame[1] not in _SEQUENTIAL:
        return "it is progressive, lossless or arithmetic-coded; send a baseline JPEG"
    if frame[4] != 8 or frame[9] != 3:
        return f"it has {frame[9]} components of {frame[4]} bits; send 3 of 8 bits"
    size = int.from_bytes(frame[5:7]), int.from_bytes(frame[7:9])
    if size != (height, width):
        return f"it is {size[0]} x {size[1]}, shape says {height} x {width}"
    return ""


def _reason(error: RuntimeError) -> str:
    return str(error).splitlines()[0].split(", ", 2)[-1]  # after the function and the line of its source
