"""The input tensors of a request, each checked by itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import simplejpeg
from google.protobuf.message import DecodeError

from mixer_server.oip.tensors import BYTES, INPUTS, Datatype, TensorSpec, names_of
from samix.errors import BadBatch
from samix.framing import HeadTooLarge, split_repeated
from samix.inference.v2 import inference_pb2 as pb

RAW_FIELD = pb.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
_MAX_HEAD_BYTES = 1 << 14  # names and shapes of a few tensors; nothing in it is about single images
_LENGTH_BYTES = 4  # before each element of BYTES

InputTensor = pb.ModelInferRequest.InferInputTensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """A tensor that came."""

    spec: TensorSpec
    """Which."""
    datatype: Datatype
    """Of its values."""
    shape: tuple[int, ...]
    """Sides."""
    raw: memoryview
    """Its bytes, which are a view of the request."""

    def numbers(self) -> np.ndarray:
        """View it as an array, read-only; for no other datatype than numbers."""
        return np.frombuffer(self.raw, self.datatype.dtype).reshape(self.shape)

    def elements(self) -> list[memoryview]:
        """Part it into its elements; for BYTES.

        Raises:
            BadBatch: if their lengths do not fit its bytes.
        """
        elements, at = [], 0
        for row in range(self.shape[0]):
            start = at + _LENGTH_BYTES
            at = start + int.from_bytes(self.raw[at:start], "little")
            if at > len(self.raw) or start > len(self.raw):
                raise _bad(self.spec.name, f"element {row} ends at byte {at} of {len(self.raw)}; {_BYTES_CURE}")
            elements.append(self.raw[start:at])
        if at != len(self.raw):
            raise _bad(self.spec.name, f"{self.shape[0]} elements end at byte {at} of {len(self.raw)}; {_BYTES_CURE}")
        return elements


_BYTES_CURE = "send each after its length in four bytes, little endian"


def parse_request(data: bytes) -> tuple[pb.ModelInferRequest, list[memoryview]]:
    """Read a request; its raw contents are views of `data`.

    Raises:
        BadBatch: if the bytes are no such message, or more of it than its raw contents is large.
    """
    try:
        return split_repeated(pb.ModelInferRequest, data, RAW_FIELD, most=len(INPUTS), max_head_bytes=_MAX_HEAD_BYTES)
    except HeadTooLarge as error:
        raise _bad(
            "raw_input_contents",
            f"{error}; send the bytes of each input there, once, of at most {len(INPUTS)}: {names_of(INPUTS)}",
        ) from error
    except DecodeError as error:
        raise BadBatch("the request is no inference.ModelInferRequest; regenerate the client's code") from error


def read_inputs(request: pb.ModelInferRequest, raws: Sequence[memoryview]) -> dict[str, Input]:
    """Check the input tensors of a request.

    Args:
        request: whose `inputs` they are.
        raws: their bytes.

    Returns:
        The tensors by their names.

    Raises:
        BadBatch: whatever is wrong with one, by value.
    """
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise _bad("contents", f"input {tensor.name!r:.60} has typed contents; send raw_input_contents instead")
    if len(raws) != len(request.inputs):
        raise _bad(
            "raw_input_contents",
            f"must hold the bytes of each of {len(request.inputs)} inputs, got {len(raws)}; send all inputs raw",
        )
    inputs: dict[str, Input] = {}
    for tensor, raw in zip(request.inputs, raws, strict=True):
        found = _read_input(tensor, raw)
        if found.spec.name in inputs:
            raise _bad("inputs", f"{found.spec.name} comes twice; send it once")
        inputs[found.spec.name] = found
    return inputs


def read_jpeg_sides(picture: memoryview) -> tuple[int, int]:
    """Read height and width of a JPEG.

    Raises:
        BadBatch: if it is none.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(picture)
    except ValueError as error:
        raise _bad("jpeg", f"element 0 is no JPEG ({error}); send JPEGs, or {INPUTS[0].name}") from error
    return int(height), int(width)


def _read_input(tensor: InputTensor, raw: memoryview) -> Input:
    spec = next((spec for spec in INPUTS if spec.name == tensor.name), None)
    if spec is None:
        raise _bad("inputs", f"{tensor.name!r:.60} is unknown; there are {names_of(INPUTS)}")
    if tensor.parameters:
        raise _bad("inputs", f"{spec.name} has a parameter {min(tensor.parameters)!r:.60}, and none is known; omit it")
    datatype = next((datatype for datatype in spec.datatypes if datatype.name == tensor.datatype), None)
    if datatype is None:
        known = " or ".join(datatype.name for datatype in spec.datatypes)
        raise _bad(spec.name, f"datatype must be {known}, got {tensor.datatype!r:.60}")
    shape = _read_shape(tensor, spec)
    num_bytes = math.prod(shape) * datatype.dtype.itemsize
    if datatype is not BYTES and len(raw) != num_bytes:
        raise _bad(spec.name, f"must be {num_bytes} bytes for {datatype.name} {list(shape)}, got {len(raw)}")
    return Input(spec=spec, datatype=datatype, shape=shape, raw=raw)


def _read_shape(tensor: InputTensor, spec: TensorSpec) -> tuple[int, ...]:
    shape = tuple(tensor.shape[: len(spec.shape) + 1])
    fits = len(shape) == len(spec.shape) and all(
        side > 0 and wanted in (-1, side) for side, wanted in zip(shape, spec.shape, strict=False)
    )
    if not fits:
        raise _bad(spec.name, f"shape must be {list(spec.shape)}, where -1 is any but 0, got {list(tensor.shape[:8])}")
    return shape


def _bad(field: str, sentence: str) -> BadBatch:
    return BadBatch(f"{field}: {sentence}", field=field)
