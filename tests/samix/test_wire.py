"""What is encoded is decoded alike, and nothing that arrives can do more than be refused."""

import math
from typing import get_args

import numpy as np
import pytest
from framing import parts, whole
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from samix.errors import BadBatch, MixerBroken
from samix.framing import join, split
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.render import LOGIT_LIMIT, Rendering, Upsampling
from samix.wire import MixCall, MixReply, decode_request, decode_response, encode_request, encode_response

NAMES = st.text(max_size=8)
IMAGE_DTYPES = [np.dtype(np.uint8), np.dtype("<f2")]
UNIT_FLOATS = st.floats(0, 1, width=32)
RENDERING = Rendering(upsampling="bilinear", lam_margin=0.08)


@st.composite
def calls(draw: st.DrawFn) -> MixCall:
    batch_size = draw(st.integers(1, 4))
    shape = (batch_size, 3, draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    pixels = st.one_of(
        arrays.arrays(np.uint8, shape),
        arrays.arrays(np.float32, shape, elements=UNIT_FLOATS),
    )
    return MixCall(
        mixer=draw(NAMES),
        version=draw(NAMES),
        pixels=draw(pixels),
        lam=draw(arrays.arrays(np.float32, batch_size, elements=UNIT_FLOATS)),
        partner=np.array(draw(st.permutations(range(batch_size))), np.int64),
        wants_images=(wants_images := draw(st.booleans())),
        image_dtype=draw(st.sampled_from(IMAGE_DTYPES)) if wants_images else np.dtype(np.uint8),
        priority=draw(st.sampled_from([pb.PRIORITY_LOW, pb.PRIORITY_NORMAL, pb.PRIORITY_HIGH])),
    )


@st.composite
def answers(draw: st.DrawFn) -> tuple[MixCall, MixReply]:
    call = draw(calls())
    shape = (len(call.pixels), 1, draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    limits = st.floats(-LOGIT_LIMIT, LOGIT_LIMIT, width=16)
    upsampling: Upsampling = draw(st.sampled_from(get_args(Upsampling)))
    return call, MixReply(
        mixer=draw(NAMES),
        version=draw(NAMES),
        rendering=Rendering(upsampling=upsampling, lam_margin=draw(UNIT_FLOATS)),
        mask_logits=draw(arrays.arrays(np.float16, shape, elements=limits)),
        images=draw(arrays.arrays(call.image_dtype, call.pixels.shape)) if call.wants_images else None,
    )


def assert_same(there: MixCall | MixReply, here: MixCall | MixReply) -> None:
    """Compare field by field; arrays also by dtype."""
    for name in here.__slots__:
        ours, theirs = getattr(here, name), getattr(there, name)
        if isinstance(ours, np.ndarray):
            assert theirs.dtype == ours.dtype
            np.testing.assert_array_equal(theirs, ours)
        else:
            assert theirs == ours


def small_call(*, wants_images: bool = False) -> MixCall:
    return MixCall(
        mixer="tiny",
        pixels=np.zeros((2, 3, 4, 4), np.uint8),
        lam=np.full(2, 0.5, np.float32),
        partner=np.array([1, 0]),
        wants_images=wants_images,
    )


def small_reply() -> MixReply:
    logits = np.zeros((2, 1, 2, 2), np.float16)
    images = np.zeros((2, 3, 4, 4), np.uint8)
    return MixReply(mixer="tiny", version="v1", rendering=RENDERING, mask_logits=logits, images=images)


@given(calls())
def test_requests_survive_the_wire(call: MixCall) -> None:
    """A request is decoded as it was encoded."""
    framed = encode_request(call)
    data = join(framed.message, framed.bulk)

    decoded = decode_request(split(pb.MixRequest, data))

    assert_same(decoded, call)


@given(answers())
def test_answers_survive_the_wire(answer: tuple[MixCall, MixReply]) -> None:
    """An answer is decoded as it was encoded."""
    call, reply = answer
    framed = encode_response(reply)
    data = join(framed.message, framed.bulk)

    decoded = decode_response(split(pb.MixResponse, data), call)

    assert_same(decoded, reply)


@given(calls(), st.data())
def test_truncated_requests_are_refused(call: MixCall, data: st.DataObject) -> None:
    """A request that was cut anywhere is refused, by protobuf or as a BadBatch."""
    complete = whole(encode_request(call)).SerializeToString()
    part = complete[: data.draw(st.integers(0, len(complete) - 1))]

    with pytest.raises((DecodeError, BadBatch)):
        decode_request(split(pb.MixRequest, part))


@given(answers(), st.data())
def test_truncated_answers_are_refused(answer: tuple[MixCall, MixReply], data: st.DataObject) -> None:
    """An answer that was cut anywhere is refused, by protobuf or as the server's fault."""
    call, reply = answer
    complete = whole(encode_response(reply)).SerializeToString()
    part = complete[: data.draw(st.integers(0, len(complete) - 1))]

    with pytest.raises((DecodeError, MixerBroken)):
        decode_response(split(pb.MixResponse, part), call)


@given(
    st.builds(
        pb.MixRequest,
        mixer=st.text(max_size=3),
        reply_format=st.integers(-1, 4),
        pixel_format=st.integers(-1, 4),
        priority=st.integers(-1, 4),
        shape=st.lists(st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1)), max_size=5),
        lam=st.lists(st.floats(width=32), max_size=4),
        partner=st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)), max_size=4),
        jpeg_lengths=st.lists(st.integers(0, 200), max_size=4),
        shared=st.none() | st.builds(pb.SharedPixels, lease=st.integers(0, 2)),
        pixels=st.binary(max_size=200),
    )
)
def test_random_requests_are_refused(request_message: pb.MixRequest) -> None:
    """A request of well-formed nonsense is decoded or a BadBatch, never another exception."""
    try:
        call = decode_request(parts(request_message))
    except BadBatch:
        return

    assert call.pixels.shape[:2] == (len(call.lam), 3)


@given(
    st.builds(
        pb.MixResponse,
        rendering=st.builds(pb.Rendering, upsampling=st.integers(-1, 3), lam_margin=st.floats(width=32)),
        mask_shape=st.lists(st.one_of(st.integers(0, 2), st.integers(0, 2**32 - 1)), max_size=5),
        mask_logits=st.binary(max_size=20),
        pixels=st.binary(max_size=100),
    )
)
def test_random_answers_are_refused(response: pb.MixResponse) -> None:
    """An answer of well-formed nonsense is decoded or the server's fault, never another exception."""
    try:
        reply = decode_response(parts(response), small_call())
    except MixerBroken:
        return

    assert len(reply.mask_logits) == 2


@given(st.binary(max_size=100))
def test_random_bytes_are_refused(data: bytes) -> None:
    """Random bytes are no request."""
    with pytest.raises((DecodeError, BadBatch)):
        decode_request(split(pb.MixRequest, data))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [2, 1, 4, 4]}, r"shape must be \[batch, 3, .* got \[2, 1, 4, 4\]"),
        ({"shape": [2, 3, 4]}, r"got \[2, 3, 4\]"),
        ({"shape": [0, 3, 4, 4]}, "no empty side"),
        ({"shape": [2, 3, 4, 5]}, "pixels must be 120 bytes for uint8 .* got 96"),
        ({"pixels": bytes(97)}, "pixels must be 96 bytes .* got 97"),
        ({"pixel_format": 0}, "pixel_format must be UINT8"),
        ({"pixel_format": 9}, "got 9"),
        ({"reply_format": 0}, "reply_format must be MASK_LOGITS"),
        ({"priority": 4}, "priority must be LOW .* got 4"),
        ({"shared": pb.SharedPixels(lease=1)}, "this server leases no memory"),
        ({"lam": [0.5]}, "one value for each of 2 images, got 1"),
        ({"lam": [0.5, 1.5]}, r"lam must lie in \[0, 1\], got 1.5"),
        ({"lam": [math.nan, 0.5]}, "got nan"),
        ({"partner": [0, 0]}, r"permutation of 0..1, got \[0, 0\]"),
        ({"partner": [0, 2]}, r"got \[0, 2\]"),
        ({"partner": [0]}, r"got \[0\]"),
    ],
)
def test_refusals_name_the_value(change: dict, sentence: str) -> None:
    """Each thing that can be wrong with a request is named with its value."""
    request = whole(encode_request(small_call()))
    for name in change:
        request.ClearField(name)
    request.MergeFrom(pb.MixRequest(**change))

    with pytest.raises(BadBatch, match=sentence) as caught:
        decode_request(parts(request))

    assert caught.value.field in pb.MixRequest.DESCRIPTOR.fields_by_name


def test_a_request_says_its_priority_only_if_it_has_one() -> None:
    """A request of a client that knows no priorities is a normal one."""
    request = whole(encode_request(small_call()))
    request.ClearField("priority")

    assert decode_request(parts(request)).priority == pb.PRIORITY_NORMAL


def test_pixels_are_not_copied() -> None:
    """Neither filling a request nor reading it copies its pixels."""
    call = small_call()
    assert isinstance(call.pixels, np.ndarray)

    framed = encode_request(call)
    decoded = decode_request(framed)

    assert isinstance(decoded.pixels, np.ndarray)
    assert np.shares_memory(decoded.pixels, call.pixels)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_float_pixels_stay_in_range(value: float) -> None:
    """Float pixels outside [0, 1] are refused, and NaN with them."""
    pixels = np.zeros((1, 3, 2, 2), np.float32)
    pixels[0, 1, 0, 1] = value
    call = MixCall(mixer="", pixels=pixels, lam=np.ones(1, np.float32), partner=np.zeros(1, np.int64))

    with pytest.raises(BadBatch, match=r"float pixels must lie in \[0, 1\]"):
        decode_request(encode_request(call))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"mask_shape": [1, 1, 2, 4]}, r"16 bytes of masks \(1, 1, 2, 4\) for 2 images"),
        ({"mask_logits": bytes(15)}, "15 bytes of masks"),
        ({"mask_logits": bytes(18)}, "18 bytes of masks"),
        ({"mask_logits": np.full(8, np.nan, "<f2").tobytes()}, "weights may be damaged"),
        ({"mask_logits": np.full(8, 30.5, "<f2").tobytes()}, "leave .-30"),
        ({"pixels": b""}, "0 bytes of images, expected 96"),
        ({"pixels": bytes(97)}, "97 bytes of images, expected 96"),
        ({"rendering": pb.Rendering(upsampling=pb.UPSAMPLING_UNSPECIFIED)}, "unknown upsampling 0"),
    ],
)
def test_unfit_answers_are_named(change: dict, sentence: str) -> None:
    """Each way in which an answer does not fit its request is named."""
    response = whole(encode_response(small_reply()))
    for name in change:
        response.ClearField(name)
    response.MergeFrom(pb.MixResponse(**change))

    with pytest.raises(MixerBroken, match=sentence):
        decode_response(parts(response), small_call(wants_images=True))
