"""Weights on their way in: nothing is allocated before their header fits, nothing is kept unless all is well."""

import hashlib
import hmac
from collections.abc import Mapping

import torch
from torch import Tensor

from samix.cotraining.wire import (
    CHUNK_BYTES,
    DTYPES,
    WEIGHT_KINDS,
    Shapes,
    WeightKind,
    num_values,
    read_infos,
    unpack_weights,
)
from samix.errors import BadBatch, DataLost
from samix.mixer.v1 import online_pb2 as pb


class WeightIntake:
    """One set of weights, from its header to its last byte."""

    def __init__(self, header: pb.WeightsHeader, shapes: Shapes) -> None:
        """Make room for weights whose header `check_header` has seen."""
        self.step = header.step
        """Steps that the trainers had done."""
        self._shapes = shapes
        self._kind: WeightKind = WEIGHT_KINDS[header.format]
        self._sha256 = header.sha256
        self._data = torch.empty(header.num_bytes, dtype=torch.uint8)
        self._filled = 0
        self._digest = hashlib.sha256()

    def add(self, chunk: memoryview) -> None:
        """Take the next bytes.

        Raises:
            BadBatch: if a chunk, or all of them together, are too large.
        """
        if len(chunk) > CHUNK_BYTES:
            raise BadBatch(f"a chunk may have {CHUNK_BYTES} bytes, got {len(chunk)}", field="chunk")
        end = self._filled + len(chunk)
        if end > len(self._data):
            raise BadBatch(f"the weights have {len(self._data)} bytes, {end} and more came", field="chunk")
        self._data.numpy()[self._filled : end] = chunk
        self._digest.update(chunk)
        self._filled = end

    def finish(self) -> Mapping[str, Tensor]:
        """Return the weights, float32, by name.

        Raises:
            DataLost: if bytes are missing, or are others than were sent.
            BadBatch: if some are not finite.
        """
        if self._filled < len(self._data):
            raise DataLost(f"of {len(self._data)} bytes of weights only {self._filled} came; send them again")
        if not hmac.compare_digest(self._digest.digest(), self._sha256):
            raise DataLost(
                f"the weights of step {self.step} have checksum {self._digest.hexdigest()[:12]}, their header says "
                f"{self._sha256.hex()[:12]}; send them again"
            )
        weights = unpack_weights(self._data, self._shapes, self._kind)
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise BadBatch(
                    f"{name} of the weights of step {self.step} is not finite; lower the learning rate", field="chunk"
                )
        return weights


def check_header(header: pb.WeightsHeader, shapes: Shapes, total_steps: int) -> None:
    """Refuse weights that are not those of the session, before anything is allocated for them.

    Raises:
        BadBatch: if names, shapes, order, format or size are others, or the step is none of the run, by value.
    """
    if header.step > total_steps:  # the momentum copy counts through the steps in between
        raise BadBatch(f"step must be at most {total_steps}, the run's end, got {header.step}", field="step")
    if header.format not in WEIGHT_KINDS:
        raise BadBatch(f"format must be FLOAT32 (1) or BFLOAT16 (2), got {header.format}", field="format")
    found, expected = read_infos(header.tensors), dict(shapes)
    for name in sorted(found.keys() ^ expected.keys()):
        side = "lack" if name in expected else "have an unknown"
        raise BadBatch(f"the weights {side} tensor {name[:128]!r}; send those that OpenSession named", field="tensors")
    for name, shape in found.items():
        if shape != expected[name]:
            raise BadBatch(
                f"tensor {name} must have shape {list(expected[name])}, got {list(shape)[:8]}", field="tensors"
            )
    if list(found) != list(expected) or len(header.tensors) != len(expected):
        raise BadBatch("the tensors are not in the order that OpenSession named; keep it", field="tensors")
    num_bytes = num_values(shapes) * DTYPES[WEIGHT_KINDS[header.format]].itemsize
    if header.num_bytes != num_bytes:
        raise BadBatch(f"num_bytes must be {num_bytes} for these tensors, got {header.num_bytes}", field="num_bytes")
    if len(header.sha256) != 32:
        raise BadBatch(f"sha256 must have 32 bytes, got {len(header.sha256)}", field="sha256")
