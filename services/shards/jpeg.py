"""JPEG pixels by libjpeg-turbo, and no more of them than a crop needs.

Unpacking the entropy-coded bits is most of the work and runs from the top, so rows below a crop need not be unpacked:
the decoder is told a smaller height than the header's. Pixels stay the same as those of the whole picture. Large
pictures are decoded at 1/2, 1/4 or 1/8 of their size, as far as the crop allows.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg

REDUCTIONS = (8, 4, 2, 1)
"""The sizes libjpeg-turbo decodes to with vector instructions: one over these."""

_START, _END = b"\xff\xd8", b"\xff\xd9"
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # these three are other tables
_HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended and progressive."""
_LUMA_SAMPLING = {0x11, 0x21, 0x12, 0x22}
"""Columns and rows of luma for one of colour, four bits each: 4:4:4, 4:2:2, 4:4:0 and 4:2:0."""
_HEIGHT_AT = 5
"""Where a frame header has the height: after marker (2), length (2) and precision (1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What a frame header says."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    start: int
    """Where the header's marker stands in the file, bytes."""


def read_frame(image: bytes) -> Frame | None:
    """Find the frame header of a JPEG that `decode` takes: 8 bits, grey or three components, Huffman coded.

    Returns:
        None for all else: other formats, four components (CMYK), arithmetic coding, unusual sampling, damaged headers.
    """
    if not image.startswith(_START):
        return None
    start = len(_START)
    while image[start : start + 1] == b"\xff" and start + 4 <= len(image):
        marker, length = image[start + 1], int.from_bytes(image[start + 2 : start + 4], "big")
        if marker in _FRAMES:
            return _parse_frame(image[start : start + 2 + length], start)
        start += 2 + length
    return None


def reduction(crop_width: int, crop_height: int, at_least: int) -> int:
    """Choose by how much a crop may be shrunk while decoding, one of REDUCTIONS, to keep `at_least` pixels a side."""
    return next((factor for factor in REDUCTIONS if min(crop_width, crop_height) >= factor * at_least), 1)


def decode(image: bytes, frame: Frame, *, bottom: int, factor: int = 1) -> np.ndarray:
    """Decode the rows above `bottom` to RGB.

    Args:
        image: the file.
        frame: its header, from `read_frame`.
        bottom: rows of the stored picture that are needed, counted from the top.
        factor: of REDUCTIONS; the picture's size is divided by it and rounded up.

    Returns:
        uint8 [H, W, 3]; H may be a little more than asked for.

    Raises:
        ValueError: if the file is truncated or cannot be decoded. Damaged bits alone give damaged pixels.
    """
    if image.rfind(_END, frame.start) < 0:
        raise ValueError("it is truncated: the end-of-image marker is missing")
    height = min(frame.height, bottom + 2 * factor)  # colour is interpolated between a row and the next
    shape = (-(-height // factor), -(-frame.width // factor), 3)
    # Not strict: bits left over after the last row are a warning, and an error where it is.
    pixels = simplejpeg.decode_jpeg(
        _with_height(image, frame, height),
        "RGB",
        min_height=shape[0],
        min_width=shape[1],
        min_factor=factor,
        strict=False,
    )
    if pixels.shape != shape:
        raise ValueError(f"its pixels are {pixels.shape[1]} x {pixels.shape[0]}, its header says otherwise")
    return pixels


def _parse_frame(header: bytes, start: int) -> Frame | None:
    if header[1] not in _HUFFMAN_FRAMES or len(header) < 10 or header[4] != 8:
        return None
    components = header[9]
    if components not in (1, 3) or len(header) != 10 + 3 * components:
        return None
    luma, *colour = header[11::3]
    # A single component has no neighbour that it could be sampled more finely than; writers say what they like.
    if luma not in (_LUMA_SAMPLING if components == 3 else {0x11}) or any(sampling != 0x11 for sampling in colour):
        return None
    height, width = int.from_bytes(header[5:7], "big"), int.from_bytes(header[7:9], "big")
    return Frame(width=width, height=height, start=start) if width and height else None


def _with_height(image: bytes, frame: Frame, height: int) -> bytes:
    if height == frame.height:
        return image
    at = frame.start + _HEIGHT_AT
    return b"".join((image[:at], height.to_bytes(2, "big"), image[at + 2 :]))
