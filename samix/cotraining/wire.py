"""The messages of a co-training session as numpy arrays and dataclasses: the one place that fills and reads them."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from samix.cotraining.settings import Learning, SessionSettings
from samix.errors import ArtefactError, BadBatch, ConfigError
from samix.framing import as_bytes
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.batch import MixPlan
from samix.mixing.fields import read_fields
from samix.mixing.online_config import StepPlans
from samix.mixing.optimise import RunLength
from samix.mixing.spec import MixerSpec

CHUNK_BYTES = 2 << 20
"""Largest chunk, in bytes; any peer takes messages up to 4 MB."""
MAX_HEAD_BYTES = 1 << 18
"""Most bytes of a message besides its chunk: names and shapes of a thousand tensors, or labels and plans of a batch."""
SERVICE = "samix.mixer.v1.OnlineService"

LogitKind = Literal["float16", "float32"]
WeightKind = Literal["float32", "bfloat16"]
Shapes = Mapping[str, tuple[int, ...]]
"""Of named tensors, in the order in which they travel."""

_LOGIT_FORMATS: dict[LogitKind, pb.LogitFormat] = {
    "float16": pb.LOGIT_FORMAT_FLOAT16,
    "float32": pb.LOGIT_FORMAT_FLOAT32,
}
_LOGIT_KINDS: dict[int, LogitKind] = {number: kind for kind, number in _LOGIT_FORMATS.items()}
_WEIGHT_FORMATS: dict[WeightKind, pb.WeightFormat] = {
    "float32": pb.WEIGHT_FORMAT_FLOAT32,
    "bfloat16": pb.WEIGHT_FORMAT_BFLOAT16,
}
WEIGHT_KINDS: dict[int, WeightKind] = {number: kind for kind, number in _WEIGHT_FORMATS.items()}
DTYPES: dict[WeightKind, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def settings_message(settings: SessionSettings) -> pb.SessionSettings:
    """Fill the message of a session's settings."""
    return pb.SessionSettings(
        mixer=settings.mixer.to_json(),
        learning=json.dumps(dataclasses.asdict(settings.learning), sort_keys=True),
        num_classes=settings.num_classes,
        clean_head=settings.clean_head,
        world_size=settings.world_size,
        batch_size=settings.batch_size,
        steps_per_epoch=settings.length.steps_per_epoch,
        epochs=settings.length.epochs,
        seed=settings.seed,
        weights_every=settings.weights_every,
        max_staleness=settings.max_staleness,
        uses_bfloat16=settings.precision == "bf16",
        logit_format=_LOGIT_FORMATS[settings.logits],
        recipe=settings.recipe,
    )


def read_settings(message: pb.SessionSettings) -> SessionSettings:
    """Read and check a session's settings.

    Raises:
        BadBatch: whatever is wrong with them, by value.
    """
    try:
        logits = _LOGIT_KINDS[message.logit_format]
    except KeyError:
        raise BadBatch(
            f"logit_format must be FLOAT16 (1) or FLOAT32 (2), got {message.logit_format}", field="logit_format"
        ) from None
    try:
        return SessionSettings(
            mixer=MixerSpec.from_json(message.mixer),
            learning=read_fields(Learning, json.loads(message.learning), "learning"),
            num_classes=message.num_classes,
            clean_head=message.clean_head,
            world_size=message.world_size,
            batch_size=message.batch_size,
            length=RunLength(steps_per_epoch=message.steps_per_epoch, epochs=message.epochs),
            seed=message.seed,
            weights_every=message.weights_every,
            max_staleness=message.max_staleness,
            precision="bf16" if message.uses_bfloat16 else "fp32",
            logits=logits,
            recipe=message.recipe,
        )
    except (ArtefactError, ConfigError, ValueError, RecursionError) as error:  # json recurses on nested brackets
        raise BadBatch(f"the session's settings cannot be used: {error}", field="settings") from error


def tensor_infos(shapes: Shapes) -> list[pb.TensorInfo]:
    """Fill the messages that name tensors."""
    return [pb.TensorInfo(name=name, shape=shape) for name, shape in shapes.items()]


def read_infos(infos: Sequence[pb.TensorInfo]) -> dict[str, tuple[int, ...]]:
    """Read the messages that name tensors."""
    return {info.name: tuple(info.shape) for info in infos}


def num_values(shapes: Shapes) -> int:
    """Count the numbers of named tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def pack_weights(weights: Mapping[str, Tensor], names: Sequence[str], kind: WeightKind) -> Tensor:
    """Copy tensors into one, in this order, on the CPU: uint8 [bytes]."""
    flat = torch.cat([weights[name].detach().reshape(-1).to(DTYPES[kind]) for name in names])
    return flat.cpu().view(torch.uint8)


def unpack_weights(data: Tensor, shapes: Shapes, kind: WeightKind) -> dict[str, Tensor]:
    """Cut bytes uint8 [bytes] into named tensors, float32."""
    values = data.view(DTYPES[kind]).float()
    parts = values.split([math.prod(shape) for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def weights_header(key: pb.SessionKey, shapes: Shapes, *, step: int, kind: WeightKind) -> pb.WeightsHeader:
    """Fill a header of weights, all but its checksum."""
    num_bytes = num_values(shapes) * DTYPES[kind].itemsize
    return pb.WeightsHeader(
        key=key, step=step, format=_WEIGHT_FORMATS[kind], tensors=tensor_infos(shapes), num_bytes=num_bytes
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainCall:
    """One clean batch of one rank. B is the number of its images."""

    step: int
    """The trainers' step."""
    images: Tensor
    """uint8 [B, 3, H, W]."""
    labels: Tensor
    """int64 [B]."""
    plans: StepPlans
    """What is mixed with what; how masks are adjusted is the rank's own business."""


def batch_message(call: TrainCall, timeout_s: float) -> pb.TrainBatch:
    """Fill the message of a batch, all but its pixels."""
    return pb.TrainBatch(
        step=call.step,
        shape=call.images.shape,
        labels=call.labels.tolist(),
        mixers=_plan_message(call.plans.mixers),
        students=_plan_message(call.plans.students),
        timeout_ms=max(1, round(1000 * timeout_s)),
    )


def read_batch(message: pb.TrainBatch, pixels: memoryview, num_classes: int) -> TrainCall:
    """Read and check a batch.

    Args:
        message: all but its pixels; `check_shape` has seen it.
        pixels: uint8, as many as the shape has.
        num_classes: labels must be smaller.

    Raises:
        BadBatch: whatever is wrong with it, by value.
    """
    size = message.shape[0]
    labels = torch.tensor(list(message.labels), dtype=torch.int64)
    if labels.shape != (size,) or (size and labels.max() >= num_classes):
        raise BadBatch(
            f"labels must be {size} numbers below {num_classes}, got {len(labels)}, the largest "
            f"{labels.max().item() if len(labels) else None}",
            field="labels",
        )
    images = torch.from_numpy(np.frombuffer(pixels, np.uint8).copy()).view(tuple(message.shape))
    plans = StepPlans(
        mixers=_read_plan(message.mixers, size, "mixers"),
        students=_read_plan(message.students, size, "students"),
        adjusts=False,
    )
    return TrainCall(step=message.step, images=images, labels=labels, plans=plans)


def logit_bytes(logits: Tensor, kind: LogitKind) -> memoryview:
    """View logits as what travels."""
    array = logits.detach().cpu().to(torch.float16 if kind == "float16" else torch.float32).contiguous().numpy()
    return as_bytes(array)


def read_logits(data: memoryview, shape: Sequence[int], kind: LogitKind) -> Tensor:
    """Read logits: float32 [B, 1, h, w].

    Raises:
        ValueError: if the bytes are not of that shape, or no numbers.
    """
    array = np.frombuffer(data, "<f2" if kind == "float16" else "<f4").astype(np.float32).reshape(tuple(shape))
    if not np.isfinite(array).all():
        raise ValueError("logits are not finite")
    return torch.from_numpy(array)


def _plan_message(plan: MixPlan) -> pb.StepPlan:
    return pb.StepPlan(lam=plan.lam.tolist(), partner=plan.partner.tolist())


def _read_plan(message: pb.StepPlan, size: int, name: str) -> MixPlan:
    lam = np.fromiter(message.lam, np.float32, len(message.lam))
    partner = np.fromiter(message.partner, np.int64, len(message.partner))
    if lam.shape != (size,) or not ((lam >= 0) & (lam <= 1)).all():  # False for NaN
        raise BadBatch(f"{name}.lam must be {size} numbers in [0, 1], got {len(lam)}: {lam[:8].tolist()}", field=name)
    if partner.shape != (size,) or not np.array_equal(np.sort(partner), np.arange(size)):
        raise BadBatch(f"{name}.partner must be a permutation of 0..{size - 1}, got {partner[:8].tolist()}", field=name)
    return MixPlan(lam=torch.from_numpy(lam), partner=torch.from_numpy(partner))
