"""Passes: requests of one image size through a mixer together, each answered as if it had come alone.

A pass is launched, and finished later: a GPU computes meanwhile, on a CPU the work is done at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mixer_server.engine.answers import Outcome, outcomes_of, rows_of, stage_plan, work_out
from mixer_server.engine.compiling import compile_encoder
from mixer_server.engine.decoding import Decoder
from samix.jpeg import JpegBatch
from samix.mixing.frozen import FrozenMixer
from samix.pieces import ScatteredPixels
from samix.wire import MixCall

TORCH_DTYPES = {np.dtype(np.uint8): torch.uint8, np.dtype(np.float32): torch.float32}
"""Of the pixels that requests hold."""


class DeviceLost(Exception):
    """The device has failed in a way from which this process cannot recover; no later pass would succeed."""


class Running(Protocol):
    """A pass that was launched."""

    def finish(self) -> list[Outcome]:
        """Wait for the answers, one for each of its requests.

        Raises:
            DeviceLost: if there will never be any.
        """
        ...


class Passes(Protocol):
    """What callers' threads and the engine ask of whatever computes. `close` it once both are gone."""

    depth: int
    """Most passes under way at once; each but the oldest costs memory and waits."""

    def prepare(self, mixer: FrozenMixer, call: MixCall) -> MixCall:
        """Do what can be done on the caller's thread before a request waits: decode pictures, say.

        Raises:
            BadBatch: if a picture cannot be decoded.
        """
        ...

    def warm(self, mixer: FrozenMixer, side: int) -> None:
        """Do what makes passes of square images of that side, in pixels, faster; may take minutes."""
        ...

    def launch(self, mixer: FrozenMixer, calls: Sequence[MixCall]) -> Running:
        """Begin a pass; for one thread.

        Args:
            mixer: computes it.
            calls: prepared requests of one image size and dtype.

        Raises:
            DeviceLost: if neither this pass nor any later one can be computed.
        """
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A pass whose answers are there."""

    outcomes: list[Outcome]
    """One for each of its requests."""

    def finish(self) -> list[Outcome]:
        """Return them."""
        return self.outcomes


class MixerPasses:
    """Passes on a CPU."""

    depth = 1

    def __init__(self, decoder: Decoder, *, precision: torch.dtype = torch.float32, compiles: bool = False) -> None:
        self._decoder = decoder
        self._precision = precision
        self._compiles = compiles

    def prepare(self, mixer: FrozenMixer, call: MixCall) -> MixCall:  # noqa: ARG002 - decoding is the same for all
        """Decode pictures."""
        if not isinstance(call.pixels, JpegBatch):
            return call
        return replace(call, pixels=self._decoder.decode(call.pixels))

    def warm(self, mixer: FrozenMixer, side: int) -> None:
        """Compile the encoder, if that is wanted."""
        if self._compiles:
            compile_encoder(mixer, side, self._precision)

    def launch(self, mixer: FrozenMixer, calls: Sequence[MixCall]) -> Finished:
        """Compute a pass, here and now."""
        return Finished(outcomes=run_pass(mixer, calls, self._precision))

    def close(self) -> None:
        """End the threads that decode."""
        self._decoder.close()


@torch.inference_mode()
def run_pass(mixer: FrozenMixer, calls: Sequence[MixCall], precision: torch.dtype = torch.float32) -> list[Outcome]:
    """Mix requests of one image size and dtype together, on a CPU."""
    images, plan = _stage_images(calls), stage_plan(calls)
    logits = mixer.mask_logits(images, plan, precision=precision)
    return outcomes_of(mixer, calls, work_out(mixer, calls, images, plan, logits))


def _stage_images(calls: Sequence[MixCall]) -> Tensor:
    """Put all pixels into one tensor; those of a lone request stay where they are, if they lie in one piece."""
    first = calls[0].pixels
    # Memory that may not be written to is copied too: torch has no such tensors.
    if len(calls) == 1 and isinstance(first, np.ndarray) and first.flags.writeable:
        return torch.from_numpy(first)
    images = torch.empty((sum(len(call.pixels) for call in calls), *first.shape[1:]), dtype=TORCH_DTYPES[first.dtype])
    for call, rows in zip(calls, rows_of(calls), strict=True):
        put_pixels(call.pixels, images[rows])
    return images


def put_pixels(pixels: np.ndarray | JpegBatch | ScatteredPixels, images: Tensor) -> None:
    """Copy pixels, which `prepare` has decoded, to [B, 3, H, W] in this process's memory."""
    assert not isinstance(pixels, JpegBatch)
    if isinstance(pixels, ScatteredPixels):
        pixels.copy_to(images.numpy())
    else:
        np.copyto(images.numpy(), pixels)
