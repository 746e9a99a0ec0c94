"""ModelInfer of the Open Inference Protocol: what it answers, and what it refuses."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from inference_requests import (
    add_input,
    answer_of,
    ask_for_inference,
    infer_request,
    outputs_of,
    seeded,
    tensors_of,
)
from serving import WAIT_S, Gate, ask, random_call, sample, serve, tiny_mixer
from torchvision.io import encode_jpeg

from mixer_server.app import MixerServer
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import run_pass
from mixer_server.front.request_config import RequestConfig
from mixer_server.scheduling.batcher import BatchingConfig
from samix.inference.v2 import inference_pb2 as pb
from samix.inference.v2.inference_pb2_grpc import GRPCInferenceServiceStub
from samix.jpeg import JpegBatch
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for, resolve_plan

CALL = random_call()
PIXELS = np.asarray(CALL.pixels)
TENSORS = tensors_of(CALL)
PARAMETER = {"x": pb.InferParameter(int64_param=1)}


@pytest.fixture(scope="session")
def inference(server: MixerServer) -> Iterator[GRPCInferenceServiceStub]:
    with ask_for_inference(server.addresses["grpc"]) as connected:
        yield connected


def jpegs_of(pixels: np.ndarray) -> list[bytes]:
    return [picture.numpy().tobytes() for picture in encode_jpeg(list(torch.from_numpy(pixels)), 90)]


def test_answers_as_mix_does(inference: GRPCInferenceServiceStub, stub: MixerServiceStub, mixer: FrozenMixer):
    """Mask logits and mixed images are those of Mix, bit for bit, in the order they are asked for."""
    request = infer_request(TENSORS, id="a request", outputs=outputs_of("mixed", "lam", "mask_logits"))

    response = inference.ModelInfer(request, timeout=WAIT_S)

    answer, expected = answer_of(response), ask(stub, random_call(wants_images=True))
    assert (response.model_name, response.model_version, response.id) == ("tiny", mixer.version, "a request")
    assert list(answer) == ["mixed", "lam", "mask_logits"]
    assert np.array_equal(answer["mask_logits"], expected.mask_logits)
    assert np.array_equal(answer["mixed"], expected.images)  # pyright: ignore[reportArgumentType]
    assert np.array_equal(answer["lam"], CALL.lam)
    assert response.parameters["upsampling"].string_param == expected.rendering.upsampling
    assert response.parameters["lam_margin"].double_param == mixer.spec.rendering.lam_margin


def test_answers_logits_where_nothing_is_said(inference: GRPCInferenceServiceStub, mixer: FrozenMixer):
    """Without outputs the answer is mask logits alone; index may be INT64, and inputs come in any order."""
    tensors = {"index": CALL.partner, "images": PIXELS, "lam": CALL.lam}

    answer = answer_of(inference.ModelInfer(infer_request(tensors), timeout=WAIT_S))

    assert list(answer) == ["mask_logits"]
    assert np.array_equal(answer["mask_logits"], run_pass(mixer, [CALL])[0].reply.mask_logits)


def test_jpegs(inference: GRPCInferenceServiceStub, mixer: FrozenMixer, decoder: Decoder):
    """Pictures that come as JPEGs are mixed as what they decode to."""
    pictures = jpegs_of(PIXELS)
    tensors = {"jpeg": pictures, "lam": CALL.lam, "index": CALL.partner}

    response = inference.ModelInfer(infer_request(tensors, outputs=outputs_of("mixed")), timeout=WAIT_S)

    batch = JpegBatch(data=b"".join(pictures), lengths=[len(picture) for picture in pictures], shape=(4, 3, 32, 32))
    expected = run_pass(mixer, [random_call(pixels=decoder.decode(batch), wants_images=True)])[0].reply
    assert np.array_equal(answer_of(response)["mixed"], expected.images)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("given", [[], ["lam"], ["index"]])
def test_a_seed_draws_what_is_missing(inference: GRPCInferenceServiceStub, mixer: FrozenMixer, given: list[str]):
    """A seed stands for what `Mixer.mix` draws by it, and what was drawn comes back."""
    tensors = {"images": PIXELS} | {name: TENSORS[name] for name in given}
    request = infer_request(tensors, parameters=seeded(7), outputs=outputs_of("mask_logits"))

    answer = answer_of(inference.ModelInfer(request, timeout=WAIT_S))

    plan = resolve_plan(
        4,
        lam=torch.from_numpy(CALL.lam) if "lam" in given else None,
        partner=torch.from_numpy(CALL.partner) if "index" in given else None,
        generator=generator_for(7),
    )
    drawn = {"lam": plan.lam.numpy(), "index": plan.partner.numpy()}
    expected = run_pass(mixer, [random_call(lam=drawn["lam"], partner=drawn["index"])])[0].reply
    assert np.array_equal(answer.pop("mask_logits"), expected.mask_logits)
    assert list(answer) == [name for name in drawn if name not in given]
    assert all(np.array_equal(values, drawn[name]) for name, values in answer.items())


def refusal(inference: GRPCInferenceServiceStub, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        inference.ModelInfer(request, timeout=WAIT_S)
    assert isinstance(caught.value, grpc.Call)
    return caught.value.code(), caught.value.details() or ""


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"images": None}, "send images or jpeg, got neither"),
        ({"jpeg": [b"x"]}, "send images or jpeg, got both"),
        ({"images": PIXELS.astype(np.float32)}, "datatype must be UINT8, got 'FP32'"),
        ({"images": PIXELS[:, 0]}, "shape must be [-1, 3, -1, -1], where -1 is any but 0, got [4, 32, 32]"),
        ({"images": PIXELS[:, :1]}, "got [4, 1, 32, 32]"),
        ({"images": PIXELS[:0]}, "got [0, 3, 32, 32]"),
        ({"images": PIXELS[:2]}, "lam must hold one value for each of 2 images, got [4]"),
        ({"images": np.zeros((4, 3, 4, 4), np.uint8)}, "images are 4 x 4, this mixer takes sides of 8"),
        ({"lam": CALL.lam[:3]}, "lam must hold one value for each of 4 images, got [3]"),
        ({"lam": CALL.lam.astype(np.float16)}, "datatype must be FP32, got 'FP16'"),
        ({"lam": np.array([0, 1, 1.5, 0], np.float32)}, "lam must lie in [0, 1], got 1.5"),
        ({"lam": np.array([0, 1, math.nan, 0], np.float32)}, "lam must lie in [0, 1], got nan"),
        ({"index": np.array([0, 1, 2, 2], np.int32)}, "index must be a permutation of 0..3, got [0, 1, 2, 2]"),
        ({"index": np.array([0, 1, 2, -1], np.int32)}, "got [0, 1, 2, -1]"),
        ({"index": np.array([0, 1, 2, 2**60], np.int64)}, "index must be a permutation"),
        ({"index": None}, "index did not come; send all, or the parameter seed to draw by"),
        ({"mask": CALL.lam}, "'mask' is unknown; there are images, jpeg, lam, index"),
        ({"images": None, "jpeg": [b"x"] * 4}, "element 0 is no JPEG"),
        ({"images": None, "jpeg": [b""] * 4}, "element 0 is no JPEG"),
    ],
)
def test_refuses_wrong_tensors(inference: GRPCInferenceServiceStub, tensors: dict, sentence: str):
    """What is wrong with a tensor is said by value, as INVALID_ARGUMENT."""
    wanted = {name: values for name, values in (TENSORS | tensors).items() if values is not None}

    code, details = refusal(inference, infer_request(wanted))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in details


def changed(**fields: object) -> pb.ModelInferRequest:
    request = infer_request(TENSORS)
    request.MergeFrom(pb.ModelInferRequest(**fields))  # pyright: ignore[reportArgumentType]
    return request


def with_input(name: str, datatype: str, shape: list[int], raw: bytes) -> pb.ModelInferRequest:
    others = {other: values for other, values in TENSORS.items() if other not in (name, "images")}
    request = infer_request(others)
    add_input(request, name, datatype, shape, raw)
    return request


def typed() -> pb.ModelInferRequest:
    request = infer_request({"images": PIXELS, "index": TENSORS["index"]})
    contents = pb.InferTensorContents(fp32_contents=[0.5] * 4)
    request.inputs.add(name="lam", datatype="FP32", shape=[4], contents=contents)
    return request


def with_parameter_of_input() -> pb.ModelInferRequest:
    request = infer_request(TENSORS)
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return request


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (typed(), "input 'lam' has typed contents; send raw_input_contents instead"),
        (changed(inputs=[{"name": "lam"}]), "must hold the bytes of each of 4 inputs, got 3"),
        (changed(raw_input_contents=[b""]), "must hold the bytes of each of 3 inputs, got 4"),
        (changed(raw_input_contents=[b""] * 2), "more than 4 bulks came; send the bytes of each input there, once"),
        (changed(inputs=[{"name": "lam", "datatype": "FP32", "shape": [1]}], raw_input_contents=[b"1234"]),
         "lam comes twice"),
        (changed(outputs=outputs_of("masks")), "'masks' is unknown; there are mask_logits, mixed, lam, index"),
        (changed(outputs=outputs_of("mixed", "mixed")), "mixed is asked for twice"),
        (changed(outputs=[{"name": "mixed", "parameters": PARAMETER}]), "mixed has a parameter 'x'"),
        (with_parameter_of_input(), "images has a parameter 'shared_memory_region', and none is known"),
        (changed(parameters=PARAMETER), "parameter 'x' is unknown; there are seed and upsample"),
        (changed(parameters={"seed": pb.InferParameter(string_param="7")}), "an int64_param, got string_param"),
        (changed(parameters={"seed": pb.InferParameter()}), "an int64_param, got nothing"),
        (changed(parameters={"upsample": pb.InferParameter(string_param="nearest")}),
         "upsample must be the string_param 'bilinear' for mixer 'tiny', got 'nearest'"),
        (with_input("images", "UINT8", [4, 3, 32, 32], b"short"), "12288 bytes for UINT8 [4, 3, 32, 32], got 5"),
        (with_input("images", "UINT8", [2**62, 3, 2**62, 2**62], b""), "bytes for UINT8"),
        (with_input("images", "UINT8", [-4, 3, -32, 32], bytes(12288)), "got [-4, 3, -32, 32]"),
        (with_input("images", "UINT8", [1] * 1000, b""), "got [1, 1, 1, 1, 1, 1, 1, 1]"),
        (with_input("jpeg", "BYTES", [4], bytes(15)), "element 3 ends at byte 16 of 15; send each after its length"),
        (with_input("jpeg", "BYTES", [4], bytes(17)), "4 elements end at byte 16 of 17"),
        (with_input("jpeg", "BYTES", [4], b"\xff" * 16), "element 0 ends at byte 4294967299 of 16"),
        (with_input("jpeg", "BYTES", [1000], b""), "1000 images in one request, this server takes 256"),
    ],
)  # fmt: skip
def test_refuses_wrong_requests(inference: GRPCInferenceServiceStub, request_: pb.ModelInferRequest, sentence: str):
    """What is wrong with a request is said by value and with the cure, as INVALID_ARGUMENT."""
    code, details = refusal(inference, request_)

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert sentence in details


def test_seeds_and_upsampling_that_are_right(inference: GRPCInferenceServiceStub):
    """A seed beside a whole plan changes nothing, however it is written; the mixer's own upsampling may be named."""
    parameters = {"seed": pb.InferParameter(uint64_param=7), "upsample": pb.InferParameter(string_param="bilinear")}

    plain = inference.ModelInfer(infer_request(TENSORS), timeout=WAIT_S)
    told = inference.ModelInfer(infer_request(TENSORS, parameters=parameters), timeout=WAIT_S)

    assert told.raw_output_contents == plain.raw_output_contents


def test_damaged_jpegs(inference: GRPCInferenceServiceStub):
    """A picture that is cut, or of another size than the first, is refused with its place."""
    pictures = jpegs_of(PIXELS)
    others = jpegs_of(np.asarray(random_call(side=40).pixels))
    plan = {"lam": CALL.lam, "index": CALL.partner}

    refusals = [
        refusal(inference, infer_request({"jpeg": [*pictures[:3], last], **plan}))
        for last in (pictures[3][:-40], others[3])
    ]

    assert [code for code, _ in refusals] == [grpc.StatusCode.INVALID_ARGUMENT] * 2
    assert "image 3 is a damaged JPEG" in refusals[0][1]
    assert "image 3 is refused: it is 40 x 40" in refusals[1][1]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model_name": "ghost"}, "no mixer is called 'ghost' here; this server hosts 'tiny'"),
        ({"model_version": "0000"}, "not '0000'"),
    ],
)
def test_names_what_there_is(inference: GRPCInferenceServiceStub, fields: dict, sentence: str):
    """An unknown model or version is NOT_FOUND, and the answer names what is hosted."""
    code, details = refusal(inference, infer_request(TENSORS, **fields))

    assert code is grpc.StatusCode.NOT_FOUND
    assert sentence in details


def test_a_version_can_be_pinned(inference: GRPCInferenceServiceStub, mixer: FrozenMixer):
    """A request that names the hosted version gets it."""
    request = infer_request(TENSORS, model_version=mixer.version)

    response = inference.ModelInfer(request, timeout=WAIT_S)

    assert response.model_version == mixer.version


def test_messages_that_are_none(server: MixerServer):
    """Bytes that are no request, and one that is mostly numbers, are the caller's fault."""
    numbers = pb.InferTensorContents(fp32_contents=[0.5] * 5000)
    request = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(contents=numbers)])
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        calls = [infer.future(data, timeout=WAIT_S) for data in (b"\xff\xff", request.SerializeToString())]

        assert [call.code() for call in calls] == [grpc.StatusCode.INVALID_ARGUMENT] * 2
        assert "is no inference.ModelInferRequest" in calls[0].details()
        assert "more than 16384 are not in the bulk field; send the bytes of each input there" in calls[1].details()


def test_overload_says_when_to_come_again(gated: tuple[FrozenMixer, Gate]):
    """In a full queue a request is refused with RESOURCE_EXHAUSTED and RetryInfo; the one that waits is answered."""
    mixer, gate = gated
    limits = {"requests": RequestConfig(max_images=4), "batching": BatchingConfig(max_queue_images=4)}
    with (
        serve(mixer, **limits) as server,
        ask_for_inference(server.addresses["grpc"]) as inference,
        ThreadPoolExecutor(2) as pool,
    ):
        gate.shut()
        held = pool.submit(inference.ModelInfer, infer_request(TENSORS), timeout=WAIT_S)
        gate.wait_until_held()
        waiting = inference.ModelInfer.future(infer_request(TENSORS), timeout=WAIT_S)
        with server.batcher._changed:
            assert server.batcher._changed.wait_for(lambda: server.batcher.num_requests == 1, WAIT_S)
        refused = inference.ModelInfer.future(infer_request(TENSORS), timeout=WAIT_S)
        code, status = refused.code(), rpc_status.from_call(refused)
        gate.open()

        assert held.result().raw_output_contents == waiting.result().raw_output_contents
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status is not None
    assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)


def test_deadlines(gated: tuple[FrozenMixer, Gate]):
    """A request whose deadline passes is DEADLINE_EXCEEDED and counts as a failure of its model."""
    mixer, gate = gated
    with serve(mixer) as server, ask_for_inference(server.addresses["grpc"]) as inference:
        gate.shut()
        call = inference.ModelInfer.future(infer_request(TENSORS), timeout=0.2)
        code = call.code()
        gate.open()
        inference.ModelInfer(infer_request(TENSORS), timeout=WAIT_S)
        (stats,) = inference.ModelStatistics(pb.ModelStatisticsRequest(), timeout=WAIT_S).model_stats

    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (stats.inference_stats.success.count, stats.inference_stats.fail.count) == (1, 1)


def test_no_memory_is_left_behind():
    """Memory that requests held is free again once they are answered or refused, pictures included."""
    pictures = jpegs_of(PIXELS)
    with serve(tiny_mixer()) as server:
        with ask_for_inference(server.addresses["grpc"]) as inference:
            good = infer_request(
                {"jpeg": pictures, "lam": CALL.lam, "index": CALL.partner}, outputs=outputs_of("mixed")
            )
            inference.ModelInfer(good, timeout=WAIT_S)
            refusal(inference, typed())
        server.stop()

        held = sample(server, "mixer_request_memory_bytes")
        counted = {
            code: sample(server, "mixer_requests_total", model="tiny", version=server.registry.mixers[0].version,
                         method="ModelInfer", code=code)
            for code in ("OK", "INVALID_ARGUMENT")
        }  # fmt: skip

    assert held == 0
    assert counted == {"OK": 1, "INVALID_ARGUMENT": 1}
