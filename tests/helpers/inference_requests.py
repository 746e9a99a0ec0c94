"""Requests of the Open Inference Protocol, as any client of it would write them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from samix.inference.v2 import inference_pb2 as pb
from samix.inference.v2.inference_pb2_grpc import GRPCInferenceServiceStub
from samix.wire import MixCall

_DATATYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32"}
_DTYPES = {datatype: dtype for dtype, datatype in _DATATYPES.items()}


@contextmanager
def ask_for_inference(address: str) -> Iterator[GRPCInferenceServiceStub]:
    """Connect to a server's GRPCInferenceService."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield GRPCInferenceServiceStub(channel)


def infer_request(tensors: Mapping[str, np.ndarray | Sequence[bytes]], **fields: Any) -> pb.ModelInferRequest:
    """Write a request; a tensor of bytes is BYTES."""
    request = pb.ModelInferRequest(model_name="tiny")
    request.MergeFrom(pb.ModelInferRequest(**fields))
    for name, values in tensors.items():
        if isinstance(values, np.ndarray):
            add_input(request, name, _DATATYPES[values.dtype.name], values.shape, values.tobytes())
        else:
            raw = b"".join(len(value).to_bytes(4, "little") + value for value in values)
            add_input(request, name, "BYTES", [len(values)], raw)
    return request


def add_input(request: pb.ModelInferRequest, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> None:
    """Add a tensor to a request."""
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)


def tensors_of(call: MixCall) -> dict[str, Any]:
    """Name the tensors of a call as the protocol does."""
    assert isinstance(call.pixels, np.ndarray)
    return {"images": call.pixels, "lam": call.lam, "index": call.partner.astype(np.int32)}


def outputs_of(*names: str) -> list[pb.ModelInferRequest.InferRequestedOutputTensor]:
    """Ask for tensors."""
    return [pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in names]


def seeded(seed: int) -> dict[str, pb.InferParameter]:
    """Give a seed."""
    return {"seed": pb.InferParameter(int64_param=seed)}


def answer_of(response: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """Read the tensors of an answer, in their order."""
    return {
        output.name: np.frombuffer(raw, _DTYPES[output.datatype]).reshape(output.shape)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
