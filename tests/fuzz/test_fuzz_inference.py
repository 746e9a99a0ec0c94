"""ModelInfer of the Open Inference Protocol, over a real channel: nonsense is refused, and costs nothing."""

import random
import struct
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from child_server import ChildServer
from fuzzing import REFUSALS, Code, Tally, Volley, fuzz, generator
from inference_requests import answer_of, infer_request, outputs_of, seeded, tensors_of
from mutations import LARGE_NUMBERS, NUMBERS, packed, spoil
from request_mutations import NAMES, SHARES
from serving import random_call

from samix.inference.v2 import inference_pb2 as pb
from samix.jpeg import encode_images

PATH = ("inference", 0.1)

INFER = "/inference.GRPCInferenceService/ModelInfer"
OTHERS = ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex", "ServerMetadata")

CALL = random_call(2, side=16)
TENSORS = tensors_of(CALL)
PLAN = {"lam": TENSORS["lam"], "index": CALL.partner}
REQUESTS = [
    infer_request(TENSORS),
    infer_request(TENSORS, outputs=outputs_of("mixed", "mask_logits", "lam"), id="7"),
    infer_request({"images": TENSORS["images"]}, parameters=seeded(7)),
    infer_request({"jpeg": encode_images(TENSORS["images"], 90), **PLAN}, outputs=outputs_of("mixed")),
]


def spoil_request(request: pb.ModelInferRequest, rng: random.Random) -> None:
    """Say something impossible in one place."""
    rng.choice(_WAYS)(request, rng)


def _raw(request: pb.ModelInferRequest, rng: random.Random) -> None:
    """Send bytes that are too few, too many, or no tensor of theirs."""
    raws = request.raw_input_contents
    at = rng.randrange(len(raws))
    shares = struct.pack("<2f", *rng.choices(SHARES, k=2))
    raws[at] = rng.choice((b"", raws[at][:-1], raws[at] * 2, rng.choice(raws), shares, spoil(raws[at], rng)))


def _raws(request: pb.ModelInferRequest, rng: random.Random) -> None:
    """Send other tensors than are described."""
    raws = list(request.raw_input_contents)
    request.ClearField("raw_input_contents")
    request.raw_input_contents.extend(rng.choice((raws[1:], raws + raws, raws[::-1], [b""] * 300, [])))


def _lengths(request: pb.ModelInferRequest, rng: random.Random) -> None:
    """Let the lengths of elements lie."""
    raws = request.raw_input_contents
    raws[0] = struct.pack("<I", rng.choice(NUMBERS)) + raws[0][4:]
    request.inputs[0].name, request.inputs[0].datatype = "jpeg", "BYTES"
    request.inputs[0].shape[:] = [rng.choice((1, 2, 3, 256, 257))]


def _shape(request: pb.ModelInferRequest, rng: random.Random) -> None:
    shape = rng.choice(request.inputs).shape
    number = rng.choice((-1, -(2**63), *(number for number in LARGE_NUMBERS if number < 2**63)))
    shape[rng.randrange(len(shape))] = number
    if rng.random() < 0.2:
        shape.extend([number] * rng.choice((1, 1000)))


def _names(request: pb.ModelInferRequest, rng: random.Random) -> None:
    named = rng.choice((*request.inputs, *request.outputs))
    named.name = rng.choice(("images", "jpeg", "lam", "index", "mixed", *NAMES))
    for field in ("model_name", "model_version", "id"):
        if rng.random() < 0.2:
            setattr(request, field, rng.choice(NAMES))


def _datatype(request: pb.ModelInferRequest, rng: random.Random) -> None:
    rng.choice(request.inputs).datatype = rng.choice(("UINT8", "BYTES", "FP32", "FP16", "INT64", "BOOL", *NAMES))


def _repeat(request: pb.ModelInferRequest, rng: random.Random) -> None:
    times = rng.choice((1, 5, 300))
    request.inputs.extend([request.inputs[0]] * times)
    request.outputs.extend(list(request.outputs[:1]) * times)


def _parameters(request: pb.ModelInferRequest, rng: random.Random) -> None:
    value = rng.choice(
        (
            pb.InferParameter(int64_param=rng.choice((-(2**63), 2**63 - 1, 0))),
            pb.InferParameter(uint64_param=rng.choice(LARGE_NUMBERS)),
            pb.InferParameter(double_param=rng.choice(SHARES)),
            pb.InferParameter(string_param=rng.choice(NAMES)),
            pb.InferParameter(bool_param=True),
            pb.InferParameter(),
        )
    )
    holder = rng.choice((request, *request.inputs, *request.outputs))
    holder.parameters[rng.choice(("seed", "upsample", "", *NAMES))].CopyFrom(value)


def _contents(request: pb.ModelInferRequest, rng: random.Random) -> None:
    contents = rng.choice(request.inputs).contents
    contents.fp32_contents.extend([0.5] * rng.choice((0, 1, 100_000)))
    contents.bytes_contents.append(b"x" * rng.choice((0, 1000)))


_WAYS: tuple[Callable[[pb.ModelInferRequest, random.Random], None], ...] = (
    *(_raw, _raws, _lengths, _shape, _names, _datatype, _repeat, _parameters, _contents),
)


def _data(rng: random.Random) -> bytes:
    request = pb.ModelInferRequest()
    request.CopyFrom(rng.choice(REQUESTS))
    if rng.random() < 0.6:
        spoil_request(request, rng)
    data = request.SerializeToString()
    return spoil(data, rng) if rng.random() < 0.5 else data


def _check(answer: bytes) -> None:
    tensors = answer_of(pb.ModelInferResponse.FromString(answer))
    assert tensors
    assert all(np.isfinite(values).all() for values in tensors.values())


@pytest.mark.timeout(0)
def test_inference(server: ChildServer, channel: grpc.Channel, ask_well: Callable[[], bytes], tally: Tally):
    """Spoilt requests of every method are refused in time and with a sentence, and leave the server as it was."""
    volley = Volley(tally)
    infer = channel.unary_unary(INFER).future
    others = [channel.unary_unary(INFER.replace("ModelInfer", name)).future for name in OTHERS]

    def send(number: int) -> None:
        rng = generator(tally.path, number)
        if rng.random() < 0.1:
            names = pb.ModelMetadataRequest(name=rng.choice(("tiny", *NAMES)), version=rng.choice(("", *NAMES)))
            volley.fire(number, spoil(names.SerializeToString(), rng), rng.choice(others))
        elif rng.random() < 0.01:
            oversized = packed(rng.choice((4, 5, 6, 7, 9)), bytes((4 << 20) - rng.choice((-1, 100))))
            volley.fire(number, oversized, infer, may_end=REFUSALS | {Code.RESOURCE_EXHAUSTED})
        else:
            volley.fire(number, _data(rng), infer, check=_check)

    fuzz(server, tally, ask_well, send, volley.land)
