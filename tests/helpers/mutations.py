"""Serialized messages, spoiled by a seeded generator: the same seed spoils the same bytes in the same way."""

import random
from collections.abc import Callable, Sequence

Way = Callable[[bytes, random.Random], bytes]
"""Of spoiling bytes."""
NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
"""Around the limits of 32 bits, and of what is written in one byte or two."""
LARGE_NUMBERS = (*NUMBERS, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
"""And of 64 bits."""

_GROUP_START, _GROUP_END = 0x0B, 0x0C  # of field 1
_MOST_REPEATS = 300


def spoil(data: bytes, rng: random.Random) -> bytes:
    """Spoil a serialized message in one way, or a few."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(_WAYS)(data, rng)
    return data


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Turn some bits around, more often near the beginning, where what is said is said."""
    spoilt = bytearray(data)
    end = rng.choice((len(spoilt), min(len(spoilt), 64)))
    for _ in range(rng.randint(1, 8) if spoilt else 0):
        spoilt[rng.randrange(end)] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave off the end, or the beginning."""
    at = rng.randint(0, len(data))
    return rng.choice((data[:at], data[at:], data[:-1], data[:-1]))


def extend(data: bytes, rng: random.Random) -> bytes:
    """Put random bytes somewhere."""
    at = rng.choice((0, len(data), rng.randint(0, len(data))))
    return data[:at] + rng.randbytes(rng.randint(1, 40)) + data[at:]


def varint(value: int, num_bytes: int = 1) -> bytes:
    """Write a number, in at least so many bytes."""
    digits = bytearray()
    while value or len(digits) < num_bytes:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits[-1] &= 0x7F
    return bytes(digits)


def fields_of(data: bytes) -> list[bytes]:
    """Cut a serialized message into its fields; what cannot be read makes the last one."""
    fields, at = [], 0
    while at < len(data):
        end = _field_end(data, at)
        fields.append(data[at:end])
        at = end
    return fields


def packed(number: int, body: bytes) -> bytes:
    """Write a field that has a length."""
    return varint(number << 3 | 2) + varint(len(body)) + body


def _field_end(data: bytes, at: int) -> int:
    kind, at = data[at] & 7, _varint_end(data, at)
    if kind == 2:
        start, at = at, _varint_end(data, at)
        at += sum((byte & 0x7F) << 7 * place for place, byte in enumerate(data[start:at]))
    elif kind == 0:
        at = _varint_end(data, at)
    else:
        at = {1: at + 8, 5: at + 4}.get(kind, len(data))
    return min(at, len(data))


def _varint_end(data: bytes, at: int) -> int:
    while at < len(data) and data[at] & 0x80:
        at += 1
    return at + 1


def _on_fields(change: Callable[[list[bytes], int, random.Random], Sequence[bytes]]) -> Way:
    def way(data: bytes, rng: random.Random) -> bytes:
        fields = fields_of(data) or [b"\x08\x01"]
        return b"".join(change(fields, rng.randrange(len(fields)), rng))

    return way


def _repeat(fields: list[bytes], at: int, rng: random.Random) -> list[bytes]:
    times = rng.choice((1, 2, 40, _MOST_REPEATS)) if len(fields[at]) < 200 else 1
    return fields + [fields[at]] * times


def _shuffle(fields: list[bytes], at: int, rng: random.Random) -> list[bytes]:
    return rng.sample(fields, len(fields))


def _drop(fields: list[bytes], at: int, rng: random.Random) -> list[bytes]:
    return fields[:at] + fields[at + 1 :]


def _replace(field: Way) -> Way:
    return _on_fields(lambda fields, at, rng: [*fields[:at], field(fields[at], rng), *fields[at + 1 :]])


def _other_kind(field: bytes, rng: random.Random) -> bytes:
    return bytes((field[0] & ~7 | rng.randrange(8),)) + field[1:]


def _other_number(field: bytes, rng: random.Random) -> bytes:
    number = rng.choice((rng.randint(0, 20), rng.randint(0, 2**29 - 1)))
    return varint(number << 3 | field[0] & 7, rng.choice((1, 1, 2, 5))) + field[_varint_end(field, 0) :]


def _other_value(field: bytes, rng: random.Random) -> bytes:
    """Put another number in place of a number, or of a length, which then lies."""
    start = _varint_end(field, 0)
    value = varint(rng.choice(LARGE_NUMBERS), rng.choice((1, 1, 5, 10, 11)))
    return field[:start] + value + field[_varint_end(field, start) :]


def _unknown(fields: list[bytes], at: int, rng: random.Random) -> list[bytes]:
    depth = rng.choice((1, 3, 99, 101, 400))
    unknown = (
        packed(rng.randint(16, 2**29 - 1), rng.randbytes(rng.randint(0, 50))),
        bytes((_GROUP_START,)) * depth + bytes((_GROUP_END,)) * rng.choice((depth, depth, depth - 1)),
        bytes((_GROUP_END,)),
        b"\x00",
        packed(rng.randint(1, 15), b"".join(fields)),  # the message inside itself
    )
    return [*fields[:at], rng.choice(unknown), *fields[at:]]


_WAYS = (
    flip_bits,
    flip_bits,
    cut,
    extend,
    _on_fields(_repeat),
    _on_fields(_shuffle),
    _on_fields(_drop),
    _on_fields(_unknown),
    _replace(_other_kind),
    _replace(_other_number),
    _replace(_other_value),
    _replace(_other_value),
    _replace(flip_bits),
)
