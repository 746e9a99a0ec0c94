"""One request of the Open Inference Protocol in the words of our own, and its answer back in those of the protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mixer_server.oip.inputs import Input, read_inputs, read_jpeg_sides
from mixer_server.oip.tensors import IMAGES, INDEX, JPEG, LAM, MASK_LOGITS, MIXED, OUTPUTS, TensorSpec, names_of
from samix.errors import BadBatch
from samix.framing import Framed, as_bytes, join_repeated
from samix.inference.v2 import inference_pb2 as pb
from samix.mixer.v1 import mixer_pb2
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for, resolve_plan
from samix.wire import MixReply

_RAW_FIELD = pb.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number
_PARSED_BYTES = 8  # of memory for each byte of a message, as for requests of our own
_PARAMETERS = ("seed", "upsample")
_FORMATS = {True: mixer_pb2.REPLY_FORMAT_IMAGES, False: mixer_pb2.REPLY_FORMAT_MASK_LOGITS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """One batch to mix. B is the batch size."""

    framed: Framed[mixer_pb2.MixRequest]
    """What is asked of the engine."""
    id: str
    """What the caller calls the request."""
    lam: np.ndarray
    """float32 [B], drawn where none was sent."""
    index: np.ndarray
    """int32 [B], likewise."""
    outputs: tuple[TensorSpec, ...]
    """What is answered, in this order."""


def extra_bytes(request: pb.ModelInferRequest, raws: Sequence[memoryview]) -> int:
    """Say how much memory reading a request takes beside the request itself: it parsed, and JPEGs put together."""
    jpegs = zip(request.inputs, raws, strict=False)
    return _PARSED_BYTES * request.ByteSize() + sum(len(raw) for tensor, raw in jpegs if tensor.name == JPEG.name)


def read_inference(
    request: pb.ModelInferRequest, raws: Sequence[memoryview], mixer: FrozenMixer, max_images: int
) -> Inference:
    """Check a request, and draw what is missing of its plan.

    Args:
        request: what came.
        raws: its raw contents.
        mixer: whose it is.
        max_images: most images of one request.

    Raises:
        BadBatch: whatever is wrong with it, by value.
    """
    seed = _read_parameters(request, mixer)
    wanted = _read_outputs(request)
    inputs = read_inputs(request, raws)
    images = _find_images(inputs)
    num_images = images.shape[0]
    if num_images > max_images:  # before anything is done for each of them
        raise BadBatch(
            f"{num_images} images in one request, this server takes {max_images}; send smaller batches", field="inputs"
        )
    lam, index = _read_plan(inputs, num_images, seed)
    drawn = tuple(spec for spec in (LAM, INDEX) if spec.name not in inputs and spec not in wanted)
    message = mixer_pb2.MixRequest(
        mixer=mixer.name,
        version=mixer.version,
        reply_format=_FORMATS[MIXED in wanted],
        lam=lam.tolist(),
        partner=index.tolist(),
    )
    bulk = _fill_pixels(message, images)
    return Inference(framed=Framed(message, bulk), id=request.id, lam=lam, index=index, outputs=(*wanted, *drawn))


def encode_answer(inference: Inference, reply: MixReply) -> bytes:
    """Fill and serialize the answer; the mixed images are copied once, into it."""
    tensors = {
        MASK_LOGITS.name: reply.mask_logits,
        MIXED.name: reply.images,
        LAM.name: inference.lam,
        INDEX.name: inference.index,
    }
    message = pb.ModelInferResponse(model_name=reply.mixer, model_version=reply.version, id=inference.id)
    message.parameters["upsampling"].string_param = reply.rendering.upsampling
    message.parameters["lam_margin"].double_param = reply.rendering.lam_margin
    raws = []
    for spec in inference.outputs:
        values = np.ascontiguousarray(tensors[spec.name], spec.datatype.dtype)
        message.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=values.shape)
        raws.append(as_bytes(values))
    return join_repeated(message, _RAW_FIELD, raws)


def _read_parameters(request: pb.ModelInferRequest, mixer: FrozenMixer) -> int | None:
    """Check all parameters; return the seed."""
    for name in request.parameters:
        if name not in _PARAMETERS:
            raise BadBatch(
                f"parameter {name!r:.60} is unknown; there are {' and '.join(_PARAMETERS)}, omit others",
                field="parameters",
            )
    if "upsample" in request.parameters:
        _check_upsampling(request.parameters["upsample"], mixer)
    if "seed" not in request.parameters:
        return None
    seed = request.parameters["seed"]
    kind = seed.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise BadBatch(f"seed must be an int64_param, got {kind or 'nothing'}", field="parameters")
    return seed.int64_param if kind == "int64_param" else seed.uint64_param


def _check_upsampling(parameter: pb.InferParameter, mixer: FrozenMixer) -> None:
    """Refuse another upsampling than the mixer was trained with: the masks would not be the ones it learned."""
    upsampling = mixer.spec.rendering.upsampling
    if parameter.string_param != upsampling:
        raise BadBatch(
            f"upsample must be the string_param {upsampling!r} for mixer {mixer.name!r}, got "
            f"{parameter.string_param!r:.60}; omit it to take what the mixer was trained with",
            field="parameters",
        )


def _read_outputs(request: pb.ModelInferRequest) -> tuple[TensorSpec, ...]:
    """Find what is wanted: mask logits where nothing is said."""
    wanted: list[TensorSpec] = []
    for output in request.outputs:
        spec = next((spec for spec in OUTPUTS if spec.name == output.name), None)
        if spec is None:
            raise BadBatch(f"outputs: {output.name!r:.60} is unknown; there are {names_of(OUTPUTS)}", field="outputs")
        if spec in wanted:
            raise BadBatch(f"outputs: {spec.name} is asked for twice; ask once", field="outputs")
        if output.parameters:
            name = min(output.parameters)
            raise BadBatch(
                f"outputs: {spec.name} has a parameter {name!r:.60}, and none is known; omit it", field="outputs"
            )
        wanted.append(spec)
    return tuple(wanted) or (MASK_LOGITS,)


def _find_images(inputs: Mapping[str, Input]) -> Input:
    found = [inputs[spec.name] for spec in (IMAGES, JPEG) if spec.name in inputs]
    if len(found) != 1:
        raise BadBatch(
            f"inputs: send {IMAGES.name} or {JPEG.name}, got {'both' if found else 'neither'}", field="inputs"
        )
    return found[0]


def _read_plan(inputs: Mapping[str, Input], num_images: int, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Read shares and partners, or draw those that are missing, as `Mixer.mix` does from a seed."""
    for spec in (LAM, INDEX):
        if spec.name in inputs and inputs[spec.name].shape != (num_images,):
            raise BadBatch(
                f"{spec.name} must hold one value for each of {num_images} images, got {list(inputs[spec.name].shape)}",
                field=spec.name,
            )
    lam = inputs[LAM.name].numbers() if LAM.name in inputs else None
    index = _checked_index(inputs[INDEX.name].numbers()) if INDEX.name in inputs else None
    if lam is not None and index is not None:
        return lam, index
    if seed is None:
        missing = " and ".join(spec.name for spec in (LAM, INDEX) if spec.name not in inputs)
        raise BadBatch(f"inputs: {missing} did not come; send all, or the parameter seed to draw by", field="inputs")
    plan = resolve_plan(
        num_images,
        lam=None if lam is None else torch.from_numpy(lam.copy()),
        partner=None if index is None else torch.from_numpy(index),
        generator=generator_for(seed),
    )
    return plan.lam.numpy(), plan.partner.numpy().astype(np.int32)


def _checked_index(index: np.ndarray) -> np.ndarray:
    if not np.array_equal(np.sort(index), np.arange(len(index))):
        raise BadBatch(
            f"index must be a permutation of 0..{len(index) - 1}, got {index.tolist()[:16]}", field=INDEX.name
        )
    return index.astype(np.int32)


def _fill_pixels(message: mixer_pb2.MixRequest, images: Input) -> memoryview:
    """Say how the pixels are encoded; return them."""
    if images.spec is IMAGES:
        message.pixel_format = mixer_pb2.PIXEL_FORMAT_UINT8
        message.shape.extend(images.shape)
        return images.raw
    pictures = images.elements()
    message.pixel_format = mixer_pb2.PIXEL_FORMAT_JPEG
    message.shape.extend((len(pictures), 3, *read_jpeg_sides(pictures[0])))
    message.jpeg_lengths.extend(map(len, pictures))
    return memoryview(b"".join(pictures))
