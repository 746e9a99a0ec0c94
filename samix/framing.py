"""Messages that end in bulk bytes, written and read without the protobuf runtime touching those bytes.

The runtime copies a `bytes` field when it is set, when it is serialized and each time it is read: 16 ms for a batch of
9.6 MB, where its bytes can be appended, or sliced, in 0.2 ms. What is on the wire is plain protobuf: any client that
was generated from the .proto reads what is written here, and what it writes is read here.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from google.protobuf.message import Message

MessageT = TypeVar("MessageT", bound=Message)

BULK_FIELD = 15
"""Number of the bulk field in each message of ours that has one; no higher number is in use, so it comes last."""

_NOTHING = memoryview(b"")
_BULK_TAG = BULK_FIELD << 3 | 2
_MAX_FIELDS = 32
"""Most fields that are skipped here in search of the bulk bytes; no message of ours needs so many."""


@dataclass(frozen=True, slots=True)
class Framed(Generic[MessageT]):
    """A message, and the bulk bytes that belong into its last field."""

    message: MessageT
    """All other fields."""
    bulk: memoryview = _NOTHING
    """The bytes, of format `B`."""

    @property
    def num_bytes(self) -> int:
        """Size on the wire, but for a few bytes of framing."""
        return self.message.ByteSize() + self.bulk.nbytes


def join(message: Message, bulk: memoryview | bytes = b"") -> bytes:
    """Serialize a message whose bulk field is not set, with `bulk` in that field."""
    return join_pieces(message, (bulk,)) if bulk else message.SerializeToString()


def join_pieces(message: Message, pieces: Sequence[memoryview | bytes]) -> bytes:
    """Serialize as `join`, with bulk bytes that lie in several pieces, of format `B`: each is copied once."""
    head = message.SerializeToString() + bytes((_BULK_TAG,)) + _varint(sum(map(len, pieces)))
    return b"".join((head, *pieces))


class HeadTooLarge(ValueError):
    """A message is large beside its bulk bytes."""


def split(message: type[MessageT], data: bytes, max_head_bytes: int | None = None) -> Framed[MessageT]:
    """Read a message and leave its bulk bytes where they are.

    Args:
        message: its type.
        data: serialized; the bulk bytes are a view of it.
        max_head_bytes: most bytes that are parsed, since they take many times their size then; None sets no limit.

    Raises:
        google.protobuf.message.DecodeError: if the bytes are no such message.
        HeadTooLarge: if more than `max_head_bytes` are no bulk bytes.
    """
    start = _bulk_start(data)
    if max_head_bytes is not None and len(data) > max_head_bytes:
        head = start[0] if start else head_bytes(data, max_head_bytes)
        if head > max_head_bytes:
            raise HeadTooLarge(f"of {len(data)} bytes, more than {max_head_bytes} are not in the bulk field")
    if start is None:
        return _split_any(message, data)
    tag_at, bulk_at = start
    return Framed(message.FromString(data[:tag_at]), memoryview(data)[bulk_at:])


def head_bytes(data: bytes, most: int) -> int:
    """Count the bytes of a serialized message that are not in its bulk field.

    Args:
        data: serialized, garbled perhaps; what is behind the first field that cannot be skipped counts as well.
        most: where counting stops; more than that may be far more.
    """
    head = field_at = 0
    try:
        while field_at < len(data) and head <= most:
            end = _skip(data, field_at)
            head += 0 if data[field_at] == _BULK_TAG else end - field_at
            field_at = end
    except IndexError:
        head += len(data) - field_at
    return head


def _split_any(message: type[MessageT], data: bytes) -> Framed[MessageT]:
    """Read a message without bulk bytes, or one whose fields come in an order of their own."""
    parsed = message.FromString(data)
    field = message.DESCRIPTOR.fields_by_number.get(BULK_FIELD)
    if field is None:
        return Framed(parsed)
    bulk = getattr(parsed, field.name)
    parsed.ClearField(field.name)
    return Framed(parsed, memoryview(bulk))


def _bulk_start(data: bytes) -> tuple[int, int] | None:
    """Find the tag of bulk bytes that reach to the end, and the bytes; None leaves the message to the runtime."""
    at = 0
    try:
        for _ in range(_MAX_FIELDS):
            if data[at] == _BULK_TAG:
                length, bulk_at = _read_varint(data, at + 1)
                return (at, bulk_at) if bulk_at + length == len(data) else None
            at = _skip(data, at)
    except IndexError:  # the end, in good order or not
        pass
    return None


def _skip(data: bytes, at: int) -> int:
    tag, at = _read_varint(data, at)
    match tag & 7:
        case 0:
            return _read_varint(data, at)[1]
        case 1:
            return at + 8
        case 2:
            length, at = _read_varint(data, at)
            return at + length
        case 5:
            return at + 4
    raise IndexError  # a wire type that ends the search


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 0x80:
        return value, at + 1
    value &= 0x7F
    for shift in range(7, 70, 7):
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise IndexError  # longer than a varint can be


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def join_repeated(message: Message, field: int, bulks: Iterable[memoryview]) -> bytes:
    """Serialize a message whose repeated bulk field is not set, with `bulks` in that field.

    Args:
        message: all other fields.
        field: number of the bulk field, at most 15, and higher than any other that is set.
        bulks: of format `B`, in their order.
    """
    parts: list[bytes | memoryview] = [message.SerializeToString()]
    for bulk in bulks:
        parts += [bytes((field << 3 | 2,)) + _varint(len(bulk)), bulk]
    return b"".join(parts)


def split_repeated(
    message: type[MessageT], data: bytes, field: int, *, most: int, max_head_bytes: int
) -> tuple[MessageT, list[memoryview]]:
    """Read a message and leave the bulk bytes of a repeated field where they are.

    Args:
        message: its type.
        data: serialized.
        field: number of the bulk field.
        most: most bulks that are taken.
        max_head_bytes: most bytes that are parsed.

    Returns:
        All other fields, and the bulks in their order, which are views of `data`.

    Raises:
        google.protobuf.message.DecodeError: if the bytes are no such message.
        HeadTooLarge: if more than `max_head_bytes` are no bulk bytes, or there are more than `most` bulks.
    """
    view, bulk_tag, num_head_bytes = memoryview(data), field << 3 | 2, 0
    heads: list[memoryview] = []
    bulks: list[memoryview] = []
    for tag, start, body_start, end in _fields(data):
        if tag == bulk_tag and end <= len(data):
            bulks.append(view[body_start:end])
        else:
            heads.append(view[start:end])
            num_head_bytes += len(heads[-1])
        if num_head_bytes > max_head_bytes:
            raise HeadTooLarge(f"of {len(data)} bytes, more than {max_head_bytes} are not in the bulk field")
        if len(bulks) > most:
            raise HeadTooLarge(f"more than {most} bulks came")
    parsed = message.FromString(b"".join(heads))
    name = message.DESCRIPTOR.fields_by_number[field].name
    bulks += [memoryview(bulk) for bulk in getattr(parsed, name)]  # from behind a field that cannot be skipped
    parsed.ClearField(name)
    if len(bulks) > most:
        raise HeadTooLarge(f"more than {most} bulks came")
    return parsed, bulks


def _fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, start, start of the body and end of each field; what begins with one that cannot be skipped is one."""
    start = 0
    while start < len(data):
        try:
            tag, body_start = _read_varint(data, start)
            length, body_start = _read_varint(data, body_start) if tag & 7 == 2 else (0, body_start)
            end = body_start + length if tag & 7 == 2 else _skip(data, start)
        except IndexError:
            tag, body_start, end = 0, start, len(data)
        yield tag, start, body_start, end
        start = end


def chunks(bulk: memoryview, num_bytes: int) -> Iterator[memoryview]:
    """Cut bulk bytes into pieces of at most `num_bytes`; of none there is one empty piece."""
    yield bulk[:num_bytes]
    for start in range(num_bytes, len(bulk), num_bytes):
        yield bulk[start : start + num_bytes]


def empty_buffer(num_bytes: int) -> np.ndarray:
    """Make room for bulk bytes: uint8 [num_bytes], writable, not initialised.

    Not by numpy, which asks for huge pages: where memory is fragmented the kernel takes 8 ms to find them for a batch
    of 9.6 MB, and copying the batch 1 ms.
    """
    return torch.empty(num_bytes, dtype=torch.uint8).numpy()


def as_bytes(array: Any) -> memoryview:
    """View a C-contiguous array as its bytes."""
    return memoryview(array).cast("B")
