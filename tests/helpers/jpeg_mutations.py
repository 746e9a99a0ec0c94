"""JPEGs of other kinds than ours, and JPEGs spoiled so that they stay close to what decoders take."""

import io
import random
import struct

import numpy as np
from mutations import Way
from PIL import Image

_SCAN = 0xDA
_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xCC, 0xD0, 0xD7, 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xE0, 0xEE, 0xFE)
_SIZES = (0, 1, 2, 7, 8, 9, 255, 256, 0x7FFF, 0x8000, 0xFFFF)


def strange_pictures(height: int, width: int) -> list[bytes]:
    """Make pictures that are sound, and of kinds that encoders of ours never write."""
    image = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))
    return [
        _saved(image, progressive=True),
        _saved(image.convert("CMYK")),
        _saved(image.convert("L")),
        _saved(image, subsampling=0, quality=100),
        _saved(image, subsampling=2, quality=1),
        _saved(image, restart_marker_blocks=1),
        _saved(image, optimize=True, comment=b"\xff\xda" * 300),
        _saved(image, keep_rgb=True),
        _saved(image.resize((width + 1, height))),
    ]


def spoil_picture(picture: bytes, rng: random.Random) -> bytes:
    """Spoil a picture in one way, or a few."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        picture = rng.choice(_WAYS)(picture, rng)
    return picture


def _saved(image: Image.Image, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **settings)
    return file.getvalue()


def _segments(picture: bytes) -> list[bytes]:
    """Cut a picture into its start, each segment of its header, and the rest."""
    segments, at = [picture[:2]], 2
    while at + 4 <= len(picture) and picture[at] == 0xFF and picture[at + 1] != _SCAN:
        end = at + 2 + int.from_bytes(picture[at + 2 : at + 4])
        segments.append(picture[at:end])
        at = end
    return [*segments, picture[at:]]


def _on_segment(change: Way) -> Way:
    def way(picture: bytes, rng: random.Random) -> bytes:
        segments = _segments(picture)
        at = rng.randrange(len(segments))
        segments[at] = change(segments[at], rng)
        return b"".join(segments)

    return way


def _at_random(segment: bytes, rng: random.Random) -> bytes:
    at = rng.randint(0, len(segment))
    return segment[:at] + bytes((rng.choice((0, 1, 0xFF, rng.randrange(256))),)) + segment[at + 1 :]


def _length(segment: bytes, rng: random.Random) -> bytes:
    return segment[:2] + struct.pack(">H", rng.choice(_SIZES)) + segment[4:]


def _marker(segment: bytes, rng: random.Random) -> bytes:
    return b"\xff" + bytes((rng.choice(_MARKERS),)) + segment[2:]


def _twice(segment: bytes, rng: random.Random) -> bytes:
    return segment * rng.choice((2, 2, 3, 40))


def _filled(segment: bytes, rng: random.Random) -> bytes:
    return b"\xff" * rng.choice((1, 2, 200)) + segment


def _frame(picture: bytes, rng: random.Random) -> bytes:
    """Change what the frame header says: precision, size, components, sampling."""
    at = picture.find(b"\xff\xc0")
    if at < 0:
        return picture
    frame = bytearray(picture[at : at + 19])
    match rng.randrange(4):
        case 0:
            frame[4] = rng.choice((0, 1, 7, 12, 16, 255))
        case 1:
            where = rng.choice((5, 7))
            frame[where : where + 2] = struct.pack(">H", rng.choice(_SIZES))
        case 2:
            frame[9] = rng.choice((0, 1, 2, 3, 4, 255))
        case _:
            where = rng.randrange(10, 19)
            frame[where : where + 1] = bytes((rng.choice((0, 0x11, 0x22, 0x41, 0x44, 0xFF, rng.randrange(256))),))
    return picture[:at] + bytes(frame) + picture[at + 19 :]


def _cut(picture: bytes, rng: random.Random) -> bytes:
    return picture[: rng.choice((rng.randint(0, len(picture)), len(picture) - 1, len(picture) - 2))]


def _scan_bytes(picture: bytes, rng: random.Random) -> bytes:
    """Put markers, or anything, where the pixels are."""
    scan_at = max(picture.find(b"\xff\xda"), 0)
    at = rng.randint(scan_at, len(picture))
    inserted = rng.choice((b"\xff" + bytes((rng.choice(_MARKERS),)), rng.randbytes(8), b"\xff\xd9", picture[scan_at:]))
    return picture[:at] + inserted + picture[at + rng.choice((0, len(inserted))) :]


def _flip(picture: bytes, rng: random.Random) -> bytes:
    spoilt = bytearray(picture)
    for _ in range(rng.randint(1, 6) if spoilt else 0):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def _table(picture: bytes, rng: random.Random) -> bytes:
    """Change what a table holds, or which of them a component uses, and keep its length."""
    segments = _segments(picture)
    tables = [at for at, segment in enumerate(segments) if segment[:2] in (b"\xff\xc4", b"\xff\xdb")]
    at = rng.choice((*tables, len(segments) - 1))  # the last begins with the header of the scan
    where = rng.randrange(4, min(len(segments[at]), 80)) if len(segments[at]) > 4 else 0
    segments[at] = (
        segments[at][:where] + bytes((rng.choice((0, 1, 255, rng.randrange(256))),)) + segments[at][where + 1 :]
    )
    return b"".join(segments)


_HEADER_WAYS = (
    *(_on_segment(_at_random), _on_segment(_length), _on_segment(_marker), _on_segment(_twice), _on_segment(_filled)),
    *(_on_segment(lambda *_: b""), _frame, _frame),
)
_WAYS = (*_HEADER_WAYS, *(_table, _table, _scan_bytes, _cut, _flip) * 4)  # the header alone is read before all else
