"""Passes on a GPU: pixels are on it before a pass begins, and several passes are under way at once.

Three streams, in each of which work is done in its order: pixels go up while requests wait, passes compute, answers go
down. Events between them say when to go on, so that no thread waits but the one that needs the answers.

What is in use cannot be overwritten: a running pass holds its tensors until its last event has come, and torch's own
pool of pinned memory reuses a block only after the copies from it. `depth` bounds how much that is.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mixer_server.engine.answers import Answers, Outcome, outcomes_of, stage_plan, work_out
from mixer_server.engine.compiling import compile_encoder
from mixer_server.engine.cuda_graphs import Graphs
from mixer_server.engine.cuda_jpeg import decode_on_gpu
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import TORCH_DTYPES, DeviceLost, put_pixels
from samix.jpeg import JpegBatch
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer
from samix.pieces import ScatteredPixels
from samix.wire import MixCall


@dataclass(frozen=True, kw_only=True, slots=True)
class DevicePixels:
    """Pixels that are on the GPU, or on their way: what `prepare` makes of a request's."""

    images: Tensor
    """uint8 or float32 [B, 3, H, W]."""
    arrived: torch.cuda.Event
    """When they are there."""
    shape: tuple[int, ...]
    """[B, 3, H, W]."""
    dtype: np.dtype
    """Of the images, as numpy says it."""
    nbytes: int
    """Bytes of the images."""

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Underway:
    """A pass that was launched, with all that must not be freed before it is over."""

    mixer: FrozenMixer
    calls: Sequence[MixCall]
    on_device: Answers
    on_host: Answers
    finished: torch.cuda.Event

    def finish(self) -> list[Outcome]:
        """Wait until the answers are on this side. A GPU that hangs keeps the engine here, callers have deadlines."""
        with _noticing_loss():
            self.finished.synchronize()
        return outcomes_of(self.mixer, self.calls, self.on_host)


class CudaPasses:
    """Passes on one GPU."""

    depth = 3
    """One computes, the answers of the one before go down, and the next is ready to start."""

    def __init__(
        self,
        device: torch.device,
        decoder: Decoder,
        *,
        precision: torch.dtype = torch.float32,
        graph_sizes: Sequence[int] = (),
        compiles: bool = False,
        decodes: bool = True,
    ) -> None:
        """Compute on a GPU.

        Args:
            device: which.
            decoder: for pictures that the GPU does not decode.
            precision: of the encoder's arithmetic.
            graph_sizes: numbers of images for which passes are recorded; smaller ones are padded up to the next.
            compiles: whether to compile encoders.
            decodes: whether the GPU decodes pictures.
        """
        self._device = device
        self._decoder = decoder
        self._precision = precision
        self._compiles = compiles
        self._decodes = decodes
        self._graphs = Graphs(sorted(graph_sizes), precision)
        self._up = torch.cuda.Stream(device)
        self._compute = torch.cuda.Stream(device)
        self._down = torch.cuda.Stream(device)
        self._launching = threading.Lock()  # recording and replaying share memory

    def prepare(self, mixer: FrozenMixer, call: MixCall) -> MixCall:  # noqa: ARG002 - the pixels are the same for all
        """Send pixels to the GPU; pictures are decoded there, or here if it refuses them."""
        pixels = call.pixels
        if isinstance(pixels, JpegBatch):
            pixels.check()
            if self._decodes and (decoded := self._decode(pixels)):
                return replace(call, pixels=decoded)
            pixels = self._decoder.decode(pixels)  # which says which picture is damaged
        return replace(call, pixels=self._send(pixels))

    def warm(self, mixer: FrozenMixer, side: int) -> None:
        """Compile and record passes of square images of that side, as far as that is wanted."""
        with _noticing_loss():
            if self._compiles:  # without the lock: it takes half a minute, in which other mixers go on
                compile_encoder(mixer, side, self._precision)
                torch.cuda.synchronize(self._device)  # what it made of the weights, it made on another stream
            with self._launching:
                self._graphs.record(mixer, side, self._compute)

    @torch.inference_mode()
    def launch(self, mixer: FrozenMixer, calls: Sequence[MixCall]) -> Underway:
        """Queue a pass on the GPU."""
        with self._launching, _noticing_loss():
            with torch.cuda.stream(self._compute):
                images, plan = self._gather(calls), self._send_plan(calls)
                logits = self._graphs.mask_logits(mixer, images, plan)
                answers = work_out(mixer, calls, images, plan, logits)
            self._down.wait_stream(self._compute)
            with torch.cuda.stream(self._down):
                on_host = _to_host(answers)
                finished = torch.cuda.Event(blocking=True)  # its wait sleeps, and lets other threads run
                finished.record()
        return Underway(mixer=mixer, calls=calls, on_device=answers, on_host=on_host, finished=finished)

    def close(self) -> None:
        """End the threads that decode; the GPU's memory goes with the process."""
        self._decoder.close()

    def _decode(self, batch: JpegBatch) -> DevicePixels | None:
        with torch.cuda.stream(self._up):
            images = decode_on_gpu(batch, self._device)
            return None if images is None else _arriving(images, batch.dtype)

    def _send(self, pixels: np.ndarray | ScatteredPixels) -> DevicePixels:
        staged = torch.empty(pixels.shape, dtype=TORCH_DTYPES[pixels.dtype], pin_memory=True)
        put_pixels(pixels, staged)
        with torch.cuda.stream(self._up):
            return _arriving(staged.to(self._device, non_blocking=True), pixels.dtype)

    def _gather(self, calls: Sequence[MixCall]) -> Tensor:
        parts = [_device_pixels(call) for call in calls]
        for part in parts:
            self._compute.wait_event(part.arrived)
        return parts[0].images if len(parts) == 1 else torch.cat([part.images for part in parts])

    def _send_plan(self, calls: Sequence[MixCall]) -> MixPlan:
        plan = stage_plan(calls)
        lam, partner = (tensor.pin_memory().to(self._device, non_blocking=True) for tensor in (plan.lam, plan.partner))
        return MixPlan(lam=lam, partner=partner)


def _device_pixels(call: MixCall) -> DevicePixels:
    assert isinstance(call.pixels, DevicePixels), "prepare() has sent them"
    return call.pixels


def _arriving(images: Tensor, dtype: np.dtype) -> DevicePixels:
    arrived = torch.cuda.Event()
    arrived.record()
    return DevicePixels(images=images, arrived=arrived, shape=tuple(images.shape), dtype=dtype, nbytes=images.nbytes)


def _to_host(answers: Answers) -> Answers:
    return Answers(
        mask_logits=_copy_down(answers.mask_logits),
        is_finite=_copy_down(answers.is_finite),
        lambda_errors=_copy_down(answers.lambda_errors),
        images=tuple(None if images is None else _copy_down(images) for images in answers.images),
    )


def _copy_down(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


@contextmanager
def _noticing_loss() -> Iterator[None]:
    try:
        yield
    except torch.AcceleratorError as error:  # every later call fails alike; out of memory is another error
        raise DeviceLost(str(error)) from error
