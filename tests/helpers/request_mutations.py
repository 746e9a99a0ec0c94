"""Requests that are whole messages and say something impossible."""

import math
import random
import struct
from collections.abc import Callable

from mutations import LARGE_NUMBERS, NUMBERS

from samix.mixer.v1 import mixer_pb2 as pb

NAMES = (
    *("ghost", "tiny\0", "TINY", "tiny ", "a" * 300, "ä€😀" * 80, "\u202etiny", "../../etc/passwd", "%s%n{0}"),
    *("\r\ngrpc-status: 0", "'; DROP TABLE mixers", "x" * 5000),
)
"""Of no mixer, version or service."""
SHARES = (math.nan, math.inf, -math.inf, -0.0, 1e-45, -1e-45, 1.1754942e-38, 1 + 2**-23, 3.4e38, -1.0, 2.0)
"""Some of which are shares: negative zero, and the smallest numbers there are."""


def spoil_request(request: pb.MixRequest, rng: random.Random) -> None:
    """Say something impossible in one field, or, more rarely, in another of them as well."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        rng.choice(_WAYS)(request, rng)


def spoil_share(request: pb.MixRequest, rng: random.Random) -> None:
    """Change one share."""
    if request.lam:
        request.lam[rng.randrange(len(request.lam))] = rng.choice(SHARES)


def _shape(request: pb.MixRequest, rng: random.Random) -> None:
    if request.shape:
        request.shape[rng.randrange(len(request.shape))] = rng.choice((*NUMBERS, rng.randint(0, 300)))


def _overflow(request: pb.MixRequest, rng: random.Random) -> None:
    """Give sides whose product is 0, 1 or as it should be, for those who count in 32 or 64 bits."""
    request.shape[:] = rng.choice(
        (
            (2**16, 3, 2**16, 2**16),
            (2**31, 3, 2**31, 4),
            (2**32 - 1, 3, 2**32 - 1, 2**32 - 1),
            (2**30, 3, 1, 4),
            (1, 3, 2**16, 2**16),
            (2, 3, 2**31, 2**31),
            (2**32 - 1, 2**32 - 1, 1, 1),
            (2863311531, 3, 1, 1),  # times 3 it is 1, in 32 bits
        )
    )


def _many_numbers(request: pb.MixRequest, rng: random.Random) -> None:
    """Fill a list with far more than belongs there: what is quadratic shows."""
    numbers = rng.choice((request.shape, request.partner, request.jpeg_lengths))
    numbers.extend([rng.choice(NUMBERS)] * rng.choice((1, 5, 300, 20_000)))


def _few_numbers(request: pb.MixRequest, rng: random.Random) -> None:
    numbers = rng.choice((request.shape, request.partner, request.jpeg_lengths, request.lam))
    del numbers[rng.randint(0, len(numbers)) :]


def _partner(request: pb.MixRequest, rng: random.Random) -> None:
    if request.partner:
        request.partner[rng.randrange(len(request.partner))] = rng.choice(NUMBERS)


def _enums(request: pb.MixRequest, rng: random.Random) -> None:
    name = rng.choice(("reply_format", "pixel_format", "priority"))
    setattr(request, name, rng.choice((0, 1, 2, 3, 4, 100, -1, 2**31 - 1, -(2**31))))


def _names(request: pb.MixRequest, rng: random.Random) -> None:
    setattr(request, rng.choice(("mixer", "version")), rng.choice(NAMES))


def _jpeg_lengths(request: pb.MixRequest, rng: random.Random) -> None:
    request.pixel_format = pb.PIXEL_FORMAT_JPEG
    rest = len(request.pixels)
    request.jpeg_lengths[:] = rng.choice(
        (
            [rest, *[0] * (len(request.lam) - 1)],
            [0, rest],
            [2**32 - 1, (rest + 1) % 2**32],  # their sum is right in 32 bits
            [rest // 2, rest - rest // 2],
            [rng.choice(NUMBERS) for _ in request.lam],
        )
    )


def _pixels(request: pb.MixRequest, rng: random.Random) -> None:
    pixels = request.pixels
    request.pixels = rng.choice((b"", pixels[:-1], pixels + b"\0", pixels * 2, pixels[: len(pixels) // 2]))


def _floats(request: pb.MixRequest, rng: random.Random) -> None:
    """Send values that are no numbers, or no pixels, in the right number of bytes."""
    num_values = math.prod(request.shape) if len(request.shape) == 4 else 0
    if num_values < 100_000:
        request.pixel_format = pb.PIXEL_FORMAT_FLOAT32
        request.pixels = struct.pack(f"<{num_values}f", *rng.choices((0.5, rng.choice(SHARES)), k=num_values))


def _shared(request: pb.MixRequest, rng: random.Random) -> None:
    request.shared.lease = rng.choice(LARGE_NUMBERS)
    request.shared.offset = rng.choice(LARGE_NUMBERS)
    if rng.random() < 0.7:
        request.pixels = b""


_WAYS: tuple[Callable[[pb.MixRequest, random.Random], None], ...] = (
    *(spoil_share, _shape, _overflow, _many_numbers, _few_numbers, _partner, _enums, _names, _jpeg_lengths, _pixels),
    *(_floats, _shared),
)
