"""A mix on its way: what was asked, and what becomes of the answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from samix import wire
from samix.client.attempts import Answer
from samix.client.config import Exchange
from samix.client.mix_name import MixName
from samix.client.pixels import shrink
from samix.client.replicas import Replicas, Route
from samix.client.retrying import RetryingCall
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.batch import MixedBatch, MixPlan, as_unit_float
from samix.mixing.render import compose
from samix.pieces import ScatteredPixels


@dataclass(frozen=True, kw_only=True, slots=True)
class MixTimes:
    """What one mix took, in seconds."""

    encode_s: float
    """Filling the request, on this machine."""
    answer_s: float
    """From `submit` to the answer, `encode_s` included."""
    blend_s: float
    """From the answer to the mixed batch, on this machine; on a GPU only until its work was queued."""

    @property
    def total_s(self) -> float:
        """From `submit` to the mixed batch, for a caller that waits for nothing else."""
        return self.answer_s + self.blend_s


class PendingMix:
    """A mix that was submitted; `result` collects it."""

    def __init__(
        self,
        *,
        answer: RetryingCall,
        name: MixName,
        call: wire.MixCall,
        exchange: Exchange,
        images: Tensor,
        labels: Tensor | None,
        plan: MixPlan,
        note_version: Callable[[str], None],
    ) -> None:
        self._name = name
        self._answer = answer
        self._call = call
        self._exchange = exchange
        self._images = images
        self._labels = labels
        self._plan = plan
        self._note_version = note_version
        self._encode_s = 0.0
        self._blend_s = 0.0

    @property
    def num_bytes_under_way(self) -> int:
        """Size of the request while it waits for its answer, else 0; before it is encoded, that of its pixels."""
        if self._answer.is_done:
            return 0
        return self._answer.num_bytes or self._call.pixels.nbytes

    @property
    def key(self) -> str:
        """What logs and traces call it, here and on the server."""
        return self._name.key

    @property
    def times(self) -> MixTimes:
        """What it took; after `result` has returned."""
        assert self._answer.answer_s is not None
        return MixTimes(encode_s=self._encode_s, answer_s=self._answer.answer_s, blend_s=self._blend_s)

    def send(self, replicas: Replicas) -> None:
        """Encode and send, once; for the mixer that made it, also from another thread.

        Raises:
            BadBatch: if the pixels cannot be encoded.
            InputError, MixerCancelled: as `Connection.start` does.
        """
        started = time.perf_counter()
        request = self._encode()
        self._encode_s = time.perf_counter() - started
        if self._name.span is not None:
            self._name.span.stage("encode", started, started + self._encode_s)
        self._answer.start(Route(replicas, "Mix", request), request.num_bytes)

    def fail(self, error: Exception) -> None:
        """Let `result` raise an error that `send` met on another thread."""
        self._answer.fail(error)

    def result(self, device: torch.device | None = None) -> MixedBatch:
        """Wait for the answer, at most until the deadline, and mix.

        Args:
            device: where to mix and leave the batch; None stays where the images are.

        Raises:
            MixerError: what went wrong, after retries.
        """
        answer = self._answer.result()
        started = time.perf_counter()
        mixed = self._mix(self._read(answer), device)
        self._blend_s = time.perf_counter() - started
        if self._name.span is not None:
            self._name.span.stage("blend", started, started + self._blend_s)
        return mixed

    def reply(self) -> wire.MixReply:
        """Wait for the answer as it came, at most until the deadline, and mix nothing.

        Raises:
            MixerError: what went wrong, after retries.
        """
        return self._read(self._answer.result())

    def cancel(self) -> None:
        """Give up the mix; `result` then raises MixerCancelled unless the answer was faster."""
        self._answer.cancel()

    def _encode(self) -> Framed[pb.MixRequest]:
        exchange, call = self._exchange, self._call
        if exchange.encoder_size is not None:
            assert isinstance(call.pixels, np.ndarray)
            call = replace(call, pixels=shrink(torch.from_numpy(call.pixels), exchange.encoder_size).numpy())
        framed = wire.encode_request(call, exchange.jpeg_quality if exchange.encoding == "jpeg" else None)
        self._name.write(framed.message)
        return framed

    def _read(self, answer: Answer) -> wire.MixReply:
        reply = wire.decode_response(answer, self._call)
        self._note_version(reply.version)
        return reply

    def _mix(self, reply: wire.MixReply, device: torch.device | None) -> MixedBatch:
        images, labels = self._images, self._labels
        if device is not None:
            images = images.to(device, non_blocking=True)
            labels = None if labels is None else labels.to(device, non_blocking=True)
        mixed = None if reply.images is None else _unit_float(reply.images, images.device)
        return compose(images, labels, self._plan, _tensor(reply.mask_logits), reply.rendering, mixed)


def _unit_float(images: np.ndarray | ScatteredPixels, device: torch.device) -> Tensor:
    if device.type != "cpu" and isinstance(images, ScatteredPixels):
        images = images.join()  # a quarter of the bytes of floats has to cross
    if isinstance(images, ScatteredPixels):
        whole = torch.empty(images.shape)
        images.copy_to(whole.numpy())
        return whole.div_(255)
    return as_unit_float(_tensor(images).to(device))


def _tensor(array: np.ndarray) -> Tensor:
    # torch warns of tensors over read-only memory.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
