"""Messages that end in a repeated field of bulk bytes."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from mutations import packed

from samix.framing import HeadTooLarge, join_repeated, split_repeated
from samix.inference.v2 import inference_pb2 as pb

Input = pb.ModelInferRequest.InferInputTensor

FIELD = 7
HEAD = pb.ModelInferRequest(model_name="tiny", id="7", inputs=[Input(name="images")])

heads = st.builds(
    pb.ModelInferRequest,
    model_name=st.text(max_size=20),
    inputs=st.lists(
        st.builds(pb.ModelInferRequest.InferInputTensor, shape=st.lists(st.integers(0, 2**62))), max_size=3
    ),
)
bulks_of = st.lists(st.binary(max_size=300), max_size=4)


def split(data: bytes, most: int = 4, max_head_bytes: int = 1000) -> tuple[pb.ModelInferRequest, list[bytes]]:
    message, bulks = split_repeated(pb.ModelInferRequest, data, FIELD, most=most, max_head_bytes=max_head_bytes)
    return message, [bytes(bulk) for bulk in bulks]


@given(heads, bulks_of)
def test_what_is_joined_is_plain_protobuf(head: pb.ModelInferRequest, bulks: list[bytes]) -> None:
    """The protobuf runtime reads what is joined here, and what it writes is split here."""
    joined = join_repeated(head, FIELD, map(memoryview, bulks))

    expected = pb.ModelInferRequest()
    expected.CopyFrom(head)
    expected.raw_input_contents.extend(bulks)
    assert pb.ModelInferRequest.FromString(joined) == expected
    assert split(expected.SerializeToString()) == (head, bulks)


@given(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=8), st.binary(max_size=10))
def test_whatever_arrives_is_read_as_by_the_runtime(kinds: list[int], data: bytes) -> None:
    """Fields in any order, unknown groups and garbage between them give what the runtime gives."""
    pieces = [
        packed(FIELD, b"some bytes"),
        b"\xba\x00\x03abc",  # the field again, its number in more bytes than it needs
        packed(3, b"id"),
        b"\x0b\x0c",  # a group, which cannot be skipped here
    ]
    message = b"".join(pieces[kind] for kind in kinds) + data
    try:
        expected = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            split(message, most=99)
        return

    parsed, bulks = split(message, most=99)

    assert bulks == list(expected.raw_input_contents)
    expected.ClearField("raw_input_contents")
    assert parsed.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


def test_bulk_bytes_are_not_copied() -> None:
    """What is split is a view of what came."""
    data = join_repeated(HEAD, FIELD, [memoryview(b"first"), memoryview(b"second")])

    _, bulks = split_repeated(pb.ModelInferRequest, data, FIELD, most=2, max_head_bytes=100)

    assert [bulk.obj is data for bulk in bulks] == [True, True]


@pytest.mark.parametrize("group", [b"", b"\x0b\x0c"])
def test_bulks_are_bounded(group: bytes) -> None:
    """More bulks than are wanted are refused, also behind a group."""
    with pytest.raises(HeadTooLarge, match="more than 4 bulks came"):
        split(group + packed(FIELD, b"") * 5)


def test_what_is_parsed_is_bounded() -> None:
    """Much that is no bulk is refused before it is parsed, wherever it stands."""
    with pytest.raises(HeadTooLarge, match="more than 1000 are not in the bulk field"):
        split(packed(FIELD, bytes(5000)) + packed(3, b"a" * 500) * 3)
