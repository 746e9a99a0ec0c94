"""Batches that travel as JPEG: served like others, and harmless whatever they hold."""

import resource
import struct
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from framing import parts, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import WAIT_S, connect, random_call, sample, serve

from mixer_server.app import MixerServer
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import run_pass
from mixer_server.front.request_config import RequestConfig
from samix.jpeg import JpegBatch
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall, decode_response, encode_request

HUGE = struct.pack(">HH", 65_535, 65_535)


def smooth_call(num_images: int = 4, side: int = 32) -> MixCall:
    """Make a call for slopes of different brightness."""
    brightness = np.arange(num_images).reshape(-1, 1, 1, 1)
    pixels = np.linspace(0, 200, side) + brightness + np.zeros((3, side, 1))
    return random_call(num_images, pixels=pixels.astype(np.uint8))


def jpeg_request(num_images: int = 4, side: int = 32) -> pb.MixRequest:
    return whole(encode_request(smooth_call(num_images, side), jpeg_quality=90))


def replace_row(request: pb.MixRequest, row: int, picture: bytes) -> None:
    """Put other bytes in the place of one picture."""
    ends = np.cumsum([0, *request.jpeg_lengths])
    start, end = ends[row], ends[row + 1]
    request.pixels = request.pixels[:start] + picture + request.pixels[end:]
    request.jpeg_lengths[row] = len(picture)


def first_picture(request: pb.MixRequest) -> bytes:
    return request.pixels[: request.jpeg_lengths[0]]


def refusal(stub: MixerServiceStub, request: pb.MixRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Mix(request, timeout=WAIT_S)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


def test_masks_are_those_of_the_decoded_pictures(stub: MixerServiceStub, mixer: FrozenMixer, decoder: Decoder):
    """A batch of JPEGs gets the masks of the pictures they hold, bit for bit."""
    call, request = smooth_call(), jpeg_request()

    reply = decode_response(parts(stub.Mix(request, timeout=WAIT_S)), call)

    pixels = decoder.decode(JpegBatch(data=request.pixels, lengths=request.jpeg_lengths, shape=(4, 3, 32, 32)))
    expected = run_pass(mixer, [random_call(pixels=pixels, lam=call.lam, partner=call.partner)])[0].reply
    assert np.array_equal(reply.mask_logits, expected.mask_logits)


def test_decoding_is_timed(stub: MixerServiceStub, server: MixerServer):
    """Decoding counts to the stage of that name, and the bytes to those received."""
    decoded = sample(server, "mixer_stage_duration_seconds_count", stage="decode")
    received = sample(server, "mixer_received_bytes_total", method="Mix")
    request = jpeg_request()

    stub.Mix(request, timeout=WAIT_S)

    assert sample(server, "mixer_stage_duration_seconds_count", stage="decode") == decoded + 1
    assert sample(server, "mixer_received_bytes_total", method="Mix") == received + request.ByteSize()


def test_a_bad_picture_is_named_by_its_row(stub: MixerServiceStub):
    """One bad picture of a batch is INVALID_ARGUMENT with its row, also where only its end is missing."""
    request = jpeg_request()
    replace_row(request, 2, first_picture(request)[:-30])

    code, details = refusal(stub, request)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "image 2 is a damaged JPEG" in details


def test_bombs_cost_no_memory(stub: MixerServiceStub):
    """Pictures that claim 65535 pixels a side, plain or progressive, are refused before memory is taken for them."""
    request = jpeg_request()
    picture = first_picture(request)
    size_at = picture.index(b"\xff\xc0") + 5
    huge = picture[:size_at] + HUGE + picture[size_at + 4 :]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    answers = []
    for bomb in (huge, huge.replace(b"\xff\xc0", b"\xff\xc2")):
        replace_row(request, 0, bomb)
        answers.append(refusal(stub, request))

    request.shape[:] = [4, 3, 65_535, 65_535]
    answers.append(refusal(stub, request))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert {code for code, _ in answers} == {grpc.StatusCode.INVALID_ARGUMENT}
    assert "image 0 is refused: it is 65535 x 65535" in answers[0][1]
    assert "progressive" in answers[1][1]
    assert "65535 x 65535, this mixer takes sides of" in answers[2][1]
    assert grown_kib < 64 << 10


def test_pixels_are_limited_like_those_that_travel_raw(mixer: FrozenMixer):
    """A message of few bytes may hold no more pixels than the largest raw message."""
    limits = RequestConfig(max_message_mib=1, max_images=1000)
    with serve(mixer, requests=limits) as server, connect(server.addresses["grpc"]) as stub:
        code, details = refusal(stub, jpeg_request(22, side=128))
        fits = stub.Mix(jpeg_request(21, side=128), timeout=WAIT_S)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "22 images of 128 x 128 in one request, this server takes 21 of that size" in details
    assert fits.mask_shape[0] == 21


@settings(max_examples=60)
@given(st.data())
def test_damage_never_harms_the_server(stub: MixerServiceStub, data: st.DataObject):
    """Whatever happens to the bytes of a request's pictures, the answer is masks or INVALID_ARGUMENT."""
    request = jpeg_request()
    row, picture = data.draw(st.integers(0, 3)), bytearray(first_picture(request))
    for _ in range(data.draw(st.integers(1, 4))):
        picture[data.draw(st.integers(0, len(picture) - 1))] = data.draw(st.integers(0, 255))
    replace_row(request, row, bytes(picture))

    call = stub.Mix.future(request, timeout=WAIT_S)

    if call.code() is not grpc.StatusCode.OK:
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"image {row} is" in call.details()


def test_many_at_once(stub: MixerServiceStub):
    """Requests that are decoded at the same time get the answers they get alone."""
    requests = [jpeg_request(), jpeg_request(2), jpeg_request(3, 48)] * 4
    alone = [stub.Mix(request, timeout=WAIT_S).mask_logits for request in requests[:3]]

    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda request: stub.Mix(request, timeout=WAIT_S), requests))

    for number, answer in enumerate(together):
        one, other = (np.frombuffer(bits, "<f2").astype(np.float32) for bits in (alone[number % 3], answer.mask_logits))
        assert 1 / (1 + np.exp(-other)) == pytest.approx(1 / (1 + np.exp(-one)), abs=1e-3)
