"""The codec reads what the protobuf runtime reads, and makes nothing of it that could not be."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from framing import whole
from fuzzing import ANSWER_S, NUM_INPUTS, SEED, Tally, generator, timed
from google.protobuf.message import DecodeError, Message
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from mutations import LARGE_NUMBERS, spoil
from request_mutations import NAMES, SHARES, spoil_request
from serving import random_call

from samix.errors import BadBatch, MixerBroken
from samix.framing import Framed, head_bytes, join, split
from samix.jpeg import JpegBatch
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.render import LOGIT_LIMIT, Rendering
from samix.pieces import as_array
from samix.wire import MixCall, MixReply, decode_request, decode_response, encode_request, encode_response

PATH = ("codec", 0.2)

CALL = random_call(2, side=4)
REPLY = MixReply(
    mixer="tiny",
    version="1",
    rendering=Rendering(upsampling="nearest", lam_margin=0.0),
    mask_logits=np.zeros((2, 1, 2, 2), np.float16),
    images=CALL.pixels,  # pyright: ignore[reportArgumentType] - which are an array
)
FLOATS = replace(CALL, pixels=np.full((2, 3, 4, 4), 0.5, np.float32))
REQUESTS = [whole(framed) for framed in (encode_request(CALL), encode_request(FLOATS), encode_request(CALL, 90))]
RESPONSES = [whole(encode_response(REPLY)), whole(encode_response(replace(REPLY, images=None)))]
MESSAGES: list[Message] = [
    *REQUESTS,
    *RESPONSES,
    pb.MixStreamRequest(sequence=1, request=REQUESTS[0], pixel_bytes=300, timeout_ms=9, chunk=bytes(300)),
    pb.MixStreamResponse(sequence=1, response=RESPONSES[0], pixel_bytes=300, chunk=bytes(300)),
    pb.MixStreamResponse(sequence=2, refusal=pb.Refusal(code=3, message="no", field_violations=[pb.FieldViolation()])),
]


def read_by_the_runtime(kind: type[Message], data: bytes) -> Message | None:
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


def read_by_us(kind: type[Message], data: bytes) -> Message | None:
    try:
        return whole(split(kind, data))
    except DecodeError:
        return None


def same(one: Message | None, other: Message | None) -> bool:
    """Compare as bytes, since NaN is not equal to itself; a message that was spoilt may be larger than it was."""
    if one is None or other is None:
        return one is other
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def refused(error: Exception) -> str:
    """Check that a refusal says something."""
    assert str(error)
    return type(error).__name__


def check_call(call: MixCall) -> None:
    """Check that a call is one that can be computed."""
    shape, num_images = call.pixels.shape, len(call.pixels)
    assert len(shape) == 4
    assert shape[1] == 3
    assert (call.lam.shape, call.lam.dtype) == ((num_images,), np.float32)
    assert ((call.lam >= 0) & (call.lam <= 1)).all()
    assert sorted(call.partner) == list(range(num_images))
    assert call.priority in (1, 2, 3)
    if isinstance(call.pixels, JpegBatch):
        assert sum(call.pixels.lengths) == len(call.pixels.data)
    elif call.pixels.dtype == np.float32:
        pixels = as_array(call.pixels)
        assert ((pixels >= 0) & (pixels <= 1)).all()


def read_request(data: bytes) -> str:
    """Read a request as a server does; returns what became of it."""
    try:
        framed = split(pb.MixRequest, data)
        call = decode_request(framed)
    except (BadBatch, DecodeError) as error:
        return refused(error)
    check_call(call)
    return "OK"


def read_response(data: bytes) -> str:
    """Read a response as a client does; returns what became of it."""
    call = replace(CALL, wants_images=True)
    try:
        reply = decode_response(split(pb.MixResponse, data), call)
    except (MixerBroken, DecodeError) as error:
        return refused(error)
    assert reply.mask_logits.shape[:2] == (2, 1)
    assert (np.abs(reply.mask_logits) <= LOGIT_LIMIT).all()
    assert reply.images is not None
    return "OK"


def read_any(message: Message, data: bytes) -> str:
    kind = type(message)
    expected = read_by_the_runtime(kind, data)
    assert same(read_by_us(kind, data), expected)
    return "OK" if expected else "DecodeError"


def one_input(rng: random.Random) -> tuple[Callable[[bytes], str], bytes]:
    """Draw what is read, and who reads it."""
    message = rng.choice(MESSAGES)
    match rng.randrange(4):
        case 0:
            request = pb.MixRequest()
            request.CopyFrom(rng.choice(REQUESTS))
            spoil_request(request, rng)
            return read_request, request.SerializeToString()
        case 1:
            return read_request, spoil(rng.choice(REQUESTS).SerializeToString(), rng)
        case 2:
            return read_response, spoil(rng.choice(RESPONSES).SerializeToString(), rng)
    return lambda data: read_any(message, data), spoil(message.SerializeToString(), rng)


def test_whatever_arrives(tally: Tally):
    """Spoilt messages are read as the runtime reads them, and refused unless they make sense."""
    with timed(tally):
        for number in tally.numbers():
            read, data = one_input(generator(tally.path, number))
            try:
                outcome = read(data)
            except BaseException as error:
                error.add_note(f"input {number}, SAMIX_FUZZ_SEED={SEED}: {data[:300].hex()}")
                raise
            tally.count(outcome)

    assert tally.slowest_s < ANSWER_S


REQUEST_FIELDS = st.fixed_dictionaries(
    {
        "mixer": st.sampled_from(("", "tiny", *NAMES)),
        "reply_format": st.integers(-1, 5),
        "pixel_format": st.integers(-1, 5),
        "priority": st.integers(-1, 5),
        "shape": st.one_of(st.just([2, 3, 4, 4]), st.lists(st.integers(0, 2**32 - 1), max_size=6)),
        "lam": st.lists(st.one_of(st.sampled_from(SHARES[:-2]), st.floats(0, 1, width=32)), max_size=4),
        "partner": st.one_of(st.just([1, 0]), st.lists(st.integers(0, 2**32 - 1), max_size=4)),
        "jpeg_lengths": st.lists(st.integers(0, 100), max_size=4),
        "shared": st.one_of(st.none(), st.builds(pb.SharedPixels, lease=st.sampled_from(LARGE_NUMBERS))),
        "pixels": st.one_of(st.just(bytes(96)), st.binary(max_size=100)),
    }
)


@seed(SEED)
@settings(max_examples=max(50, NUM_INPUTS // 50))
@given(REQUEST_FIELDS)
def test_requests_of_any_content(fields: dict):
    """Whatever a whole request says, it is refused with a sentence, or can be computed."""
    read_request(pb.MixRequest(**fields).SerializeToString())


@seed(SEED)
@settings(max_examples=max(50, NUM_INPUTS // 50))
@given(st.binary(max_size=400), st.sampled_from(MESSAGES[:5]))
def test_the_head_is_what_is_not_bulk(bulk: bytes, message: Message):
    """Of a message the bulk bytes are not counted, and everything else is."""
    head = split(type(message), message.SerializeToString()).message

    data = join(head, bulk)

    assert head_bytes(data, 1 << 20) == len(head.SerializeToString())


@seed(SEED)
@settings(max_examples=max(50, NUM_INPUTS // 50))
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
    st.binary(max_size=64),
    st.integers(0, 3),
    st.floats(width=32),
)
def test_answers_of_any_content(mask_shape: list[int], logits: bytes, upsampling: int, lam_margin: float):
    """Whatever a server answers, its client reads logits of its own batch, or says that the mixer is broken."""
    rendering = pb.Rendering(upsampling=upsampling, lam_margin=lam_margin)  # pyright: ignore[reportArgumentType]
    response = pb.MixResponse(mask_shape=mask_shape, mask_logits=logits, rendering=rendering)

    try:
        reply = decode_response(Framed(response), CALL)
    except MixerBroken as error:
        refused(error)
    else:
        assert reply.mask_logits.size == math.prod(mask_shape)
