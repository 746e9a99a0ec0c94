import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import WAIT_S, ask, connect, random_call, request, sample, serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.engine.passes import run_pass
from mixer_server.front.request_config import RequestConfig
from mixer_server.scheduling.batcher import BatchingConfig
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer
from samix.mixing.presets import tiny_spec

MIX = "/samix.mixer.v1.MixerService/Mix"


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("wants_images", [False, True])
def test_mix(stub: MixerServiceStub, mixer: FrozenMixer, dtype: type, wants_images: bool):
    """A mix over the wire is what a pass computes, bit for bit, in either pixel and reply format."""
    pixels = np.asarray(random_call().pixels)
    pixels = pixels if dtype is np.uint8 else pixels.astype(np.float32) / 255
    call = random_call(mixer="tiny", version=mixer.version, pixels=pixels, wants_images=wants_images)

    reply = ask(stub, call)

    expected = run_pass(mixer, [call])[0].reply
    assert np.array_equal(reply.mask_logits, expected.mask_logits)
    assert reply.rendering.upsampling == mixer.spec.rendering.upsampling
    assert (reply.images is None) == (not wants_images)
    if wants_images:
        assert np.array_equal(reply.images, expected.images)  # pyright: ignore[reportArgumentType]


def test_describes_mixers(mixer: FrozenMixer):
    """ListMixers names all mixers in order, GetMixer the one that was asked for."""
    with serve(tiny_mixer("zebra", seed=1), mixer) as server, connect(server.addresses["grpc"]) as stub:
        listed = stub.ListMixers(pb.ListMixersRequest(), timeout=WAIT_S).mixers
        one = stub.GetMixer(pb.GetMixerRequest(name="tiny"), timeout=WAIT_S).mixer

    assert [info.name for info in listed] == ["tiny", "zebra"]
    assert listed[0] == one
    spec = tiny_spec()
    assert json_format.MessageToDict(one, preserving_proto_field_name=True) == {
        "name": "tiny",
        "version": mixer.version,
        "sha256": mixer.sha256,
        "encoder": spec.backbone.name,
        "stage": spec.stage,
        "mode": spec.mode,
        "rendering": {"upsampling": "UPSAMPLING_BILINEAR", "lam_margin": pytest.approx(0.08)},
        "min_side": spec.min_side,
        "max_side": spec.max_side,
        "max_images": RequestConfig().max_images,
        "max_tokens": spec.max_tokens,
        "stride": spec.stride,
        "pixel_formats": ["PIXEL_FORMAT_UINT8", "PIXEL_FORMAT_FLOAT32", "PIXEL_FORMAT_JPEG"],
        "image_size": spec.image_size,
    }


def refusal(stub: MixerServiceStub, message: pb.MixRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Mix(message, timeout=WAIT_S)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"reply_format": 0}, "reply_format must be"),
        ({"reply_format": 7}, "got 7"),
        ({"pixel_format": 0}, "pixel_format must be"),
        ({"shape": [4, 3, 32]}, "got [4, 3, 32]"),
        ({"shape": [4, 1, 32, 32]}, "got [4, 1, 32, 32]"),
        ({"shape": [0, 3, 32, 32]}, "no empty side"),
        ({"shape": [2**32 - 1, 3, 2**32 - 1, 2**32 - 1]}, "pixels must be"),
        ({"pixels": b"short"}, "got 5"),
        ({"lam": [0.5] * 3}, "one value for each of 4 images"),
        ({"lam": [0.5, 0.5, 0.5, 1.5]}, "got 1.5"),
        ({"lam": [0.5, 0.5, 0.5, float("nan")]}, "got nan"),
        ({"partner": [0, 1, 2]}, "permutation"),
        ({"partner": [0, 0, 1, 2]}, "permutation"),
        ({"partner": [0, 1, 2, 4]}, "permutation"),
    ],
)
def test_refuses_wrong_requests(stub: MixerServiceStub, changes: dict, sentence: str):
    """What is wrong with a request is said by value, as INVALID_ARGUMENT."""
    code, details = refusal(stub, request(**changes))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in details


@pytest.mark.parametrize(
    ("num_images", "side", "sentence"),
    [
        (3, 32, "3 images of 32 x 32 in one request, this server takes 2 of that size; send smaller batches"),
        (2, 128, "this server takes 1 of that size"),
        (1, 4, "images are 4 x 4, this mixer takes sides of 8"),
        (1, 136, "1156 tokens, this mixer takes 1024"),
    ],
)
def test_refuses_over_the_limits(mixer: FrozenMixer, num_images: int, side: int, sentence: str):
    """A request over a limit of the server or the mixer is refused with both numbers."""
    with (
        serve(mixer, requests=RequestConfig(max_images=2), batching=BatchingConfig(max_attention_mib=4)) as server,
        connect(server.addresses["grpc"]) as stub,
        pytest.raises(grpc.RpcError) as caught,
    ):
        ask(stub, random_call(num_images, side))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # pyright: ignore[reportAttributeAccessIssue]
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mixer": "ghost"}, "no mixer is called 'ghost' here; this server hosts 'tiny'"),
        ({"version": "0000"}, "not '0000'"),
    ],
)
def test_names_what_there_is(stub: MixerServiceStub, changes: dict, sentence: str):
    """An unknown mixer or version is NOT_FOUND, and the answer names what is hosted."""
    code, details = refusal(stub, request(**changes))

    assert code is grpc.StatusCode.NOT_FOUND
    assert sentence in details


def test_empty_name_among_several(mixer: FrozenMixer):
    """Where several mixers are hosted, an empty name is refused with their names."""
    with serve(mixer, tiny_mixer("other", seed=1)) as server, connect(server.addresses["grpc"]) as stub:
        code, details = refusal(stub, request())

    assert code is grpc.StatusCode.NOT_FOUND
    assert "'other', 'tiny'" in details


def test_refuses_large_messages(mixer: FrozenMixer):
    """A message over the limit gets RESOURCE_EXHAUSTED from gRPC with both sizes, and the server goes on."""
    limits = RequestConfig(max_message_mib=1)
    with serve(mixer, requests=limits) as server, connect(server.addresses["grpc"]) as stub:
        code, details = refusal(stub, request(pixels=bytes(2 << 20)))
        reply = ask(stub, random_call())

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in details
    assert reply.mixer == "tiny"


POLITE = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


def code_of(server: MixerServer, data: bytes) -> grpc.StatusCode:
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        return channel.unary_unary(MIX).future(data, timeout=WAIT_S).code()


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_bytes(server: MixerServer, data: bytes):
    """Random bytes never get UNKNOWN or INTERNAL: they are the caller's fault."""
    code = code_of(server, data)

    assert code in POLITE


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        pb.MixRequest,
        mixer=st.sampled_from(["", "tiny", "x" * 1000]),
        reply_format=st.integers(0, 3),
        pixel_format=st.integers(0, 4),
        shape=st.lists(st.integers(0, 9) | st.integers(0, 2**32 - 1), max_size=5) | st.just([1, 3, 8, 8]),
        lam=st.lists(st.floats(width=32), max_size=3) | st.just([0.5]),
        partner=st.lists(st.integers(0, 2**32 - 1), max_size=3) | st.just([0]),
        jpeg_lengths=st.lists(st.integers(0, 64), max_size=3),
        pixels=st.binary(max_size=64) | st.just(bytes(192)) | st.just(bytes(768)),
    )
)
def test_garbage_requests(server: MixerServer, message: pb.MixRequest):
    """Well-formed messages of random values never get UNKNOWN or INTERNAL."""
    code = code_of(server, message.SerializeToString())

    assert code in POLITE


def test_unknown_names_do_not_become_labels(server: MixerServer, stub: MixerServiceStub):
    """Requests for mixers that are not there are counted under one label."""
    before = sample(server, "mixer_requests_total", model="unknown", version="unknown", method="Mix", code="NOT_FOUND")

    refusal(stub, request(mixer="ghost"))

    after = sample(server, "mixer_requests_total", model="unknown", version="unknown", method="Mix", code="NOT_FOUND")
    assert after - before == 1


def test_methods_are_those_of_the_contract(server: MixerServer):
    """Every method of the proto is answered."""
    service = pb.DESCRIPTOR.services_by_name["MixerService"]

    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        calls = [
            channel.unary_unary(f"/{service.full_name}/{method.name}").future(b"", timeout=WAIT_S)
            for method in service.methods
        ]
        codes = [call.code() for call in calls]

    assert len(codes) == 4
    assert grpc.StatusCode.UNIMPLEMENTED not in codes
