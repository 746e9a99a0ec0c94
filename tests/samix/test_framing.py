"""Messages with bulk bytes are written and read beside the protobuf runtime as it writes and reads them."""

import numpy as np
import pytest
from framing import whole
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given
from hypothesis import strategies as st

from samix.framing import BULK_FIELD, Framed, as_bytes, chunks, join, split
from samix.mixer.v1 import mixer_pb2 as pb

HEADS = st.one_of(
    st.builds(
        pb.MixRequest,
        mixer=st.text(max_size=8),
        reply_format=st.integers(-1, 4),
        shape=st.lists(st.integers(0, 2**32 - 1), max_size=5),
        lam=st.lists(st.floats(width=32, allow_nan=False), max_size=4),  # NaN is not equal to itself
        partner=st.lists(st.integers(0, 2**32 - 1), max_size=40),
    ),
    st.builds(
        pb.MixResponse,
        version=st.text(max_size=8),
        rendering=st.builds(pb.Rendering, upsampling=st.integers(0, 3)),
        mask_logits=st.binary(max_size=200),
    ),
    st.builds(pb.MixStreamRequest, sequence=st.integers(0, 2**64 - 1), pixel_bytes=st.integers(0, 2**64 - 1)),
    st.builds(pb.MixStreamResponse, sequence=st.integers(0, 300), is_ending=st.booleans()),
    st.builds(pb.GetMixerRequest, name=st.text(max_size=8)),
)
BULKS = st.one_of(st.binary(max_size=20), st.integers(100, 70_000).map(bytes))
TYPES = st.sampled_from([pb.MixRequest, pb.MixResponse, pb.MixStreamRequest, pb.MixStreamResponse])


@st.composite
def varints(draw: st.DrawFn, values: st.SearchStrategy[int]) -> bytes:
    """Numbers as the wire has them, some of them longer than they need be, and longer than any may be."""
    value, num_bytes = draw(values), draw(st.sampled_from([1, 1, 1, 1, 2, 5, 6, 10, 11]))
    digits = []
    while value or len(digits) < num_bytes:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits[-1] &= 0x7F
    return bytes(digits)


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """A field as the wire has it, known or unknown, right or wrong."""
    number = draw(st.one_of(st.just(BULK_FIELD), st.integers(0, 20), st.integers(0, 2**29)))
    kind = draw(st.sampled_from([2, 2, 2, 0, 1, 5, 3, 4, 6, 7]))
    tag = draw(varints(st.just(number << 3 | kind)))
    match kind:
        case 0:
            return tag + draw(varints(st.integers(0, 2**64 - 1)))
        case 1:
            return tag + draw(st.binary(min_size=8, max_size=8))
        case 2:
            data = draw(st.binary(max_size=12))
            return tag + draw(varints(st.just(len(data)))) + data
        case 5:
            return tag + draw(st.binary(min_size=4, max_size=4))
    return tag


@st.composite
def serialized(draw: st.DrawFn) -> bytes:
    """Fields in any order and number, whole or cut."""
    data = b"".join(draw(st.lists(st.one_of(fields(), HEADS.map(lambda head: head.SerializeToString())), max_size=6)))
    return data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data


def parsed_by_the_runtime(kind: type[Message], data: bytes) -> Message | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def parsed_by_us(kind: type[Message], data: bytes) -> Message | None:
    try:
        return whole(split(kind, data))
    except DecodeError:
        return None


@given(HEADS, BULKS)
def test_what_is_joined_is_plain_protobuf(head: Message, bulk: bytes) -> None:
    """A message with bulk bytes is written byte for byte as the protobuf runtime writes it."""
    bulk = b"" if isinstance(head, pb.GetMixerRequest) else bulk  # which has no such field
    expected = whole(Framed(head, memoryview(bulk)))

    data = join(head, bulk)

    assert data == expected.SerializeToString(deterministic=True)


@given(HEADS, BULKS)
def test_what_is_joined_is_split_again(head: Message, bulk: bytes) -> None:
    """A message and its bulk bytes are read as they were written."""
    bulk = b"" if isinstance(head, pb.GetMixerRequest) else bulk

    framed = split(type(head), join(head, bulk))

    assert framed.message == head
    assert framed.bulk == bulk


@given(TYPES, serialized())
@example(pb.MixRequest, b"\x7a\x81\x80\x80\x80\x80\x00x")  # a length of six bytes
@example(pb.MixRequest, b"\xfa\x00\x01a\x7a\x00")  # the bulk field under a longer tag, then empty
@example(pb.MixRequest, b"\x7a\x01a\x7a\x02bc")
@example(pb.MixRequest, b"\x7a\x05abc")
@example(pb.MixRequest, b"\x7a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01")
@example(pb.MixStreamRequest, b"\x12\x02\x7a\x00\x7a\x01a")  # bulk bytes of a message inside
@example(pb.MixRequest, b"\x7b\x7c\x7a\x01a")  # a group
def test_whatever_arrives_is_read_as_by_the_runtime(kind: type[Message], data: bytes) -> None:
    """Fields of any order, repeated, unknown, cut or hostile are read, or refused, as the protobuf runtime does."""
    assert parsed_by_us(kind, data) == parsed_by_the_runtime(kind, data)


@given(TYPES, st.binary(max_size=60))
def test_random_bytes_are_read_as_by_the_runtime(kind: type[Message], data: bytes) -> None:
    """Random bytes are read, or refused, as the protobuf runtime does."""
    assert parsed_by_us(kind, data) == parsed_by_the_runtime(kind, data)


def test_bulk_bytes_are_not_copied() -> None:
    """The bulk bytes of a message that was read are those that arrived."""
    data = join(pb.MixRequest(mixer="tiny", shape=[64, 3, 224, 224]), bytes(100_000))

    framed = split(pb.MixRequest, data)

    assert framed.bulk.obj is data
    assert not framed.message.pixels


def test_an_array_is_not_copied() -> None:
    """The bytes of an array are its memory, whatever its dtype."""
    array = np.arange(12, dtype="<f4").reshape(3, 4)

    view = as_bytes(array)

    assert np.shares_memory(np.frombuffer(view, np.uint8), array)
    assert view.nbytes == 48


@pytest.mark.parametrize("bulk", [bytes(127), bytes(128), bytes(16_384), bytes(9_633_792)])
def test_sizes_on_the_wire(bulk: bytes) -> None:
    """What a message says of its size is right but for its framing."""
    framed = Framed(pb.MixRequest(mixer="tiny"), memoryview(bulk))

    assert 0 < len(join(framed.message, framed.bulk)) - framed.num_bytes <= 5


@given(st.binary(max_size=50), st.integers(1, 20))
def test_chunks(bulk: bytes, num_bytes: int) -> None:
    """Chunks are as large as allowed but for the last one, make up the bulk bytes, and there is always one."""
    pieces = list(chunks(memoryview(bulk), num_bytes))

    assert b"".join(pieces) == bulk
    assert len(pieces) == max(1, -(-len(bulk) // num_bytes))
    assert all(len(piece) == num_bytes for piece in pieces[:-1])
