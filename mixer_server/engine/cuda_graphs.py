"""Passes that were recorded on a GPU and are replayed: one launch instead of a hundred small ones.

A recording knows one mixer, one number of images and one size. A smaller pass is padded up to the next number, which
costs a GPU next to nothing; one that no recording fits is computed the plain way.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer

_TRIALS = 3
"""Runs before a recording, in which libraries choose their kernels and take their memory."""


class Recording:
    """`mask_logits` of one mixer for one shape. Its tensors stay where they are, and every replay uses them."""

    def __init__(self, graph: torch.cuda.CUDAGraph, images: Tensor, plan: MixPlan, logits: Tensor) -> None:
        self._graph = graph
        self._images = images
        self._plan = plan
        self._logits = logits

    @classmethod
    def make(cls, mixer: FrozenMixer, shape: Sequence[int], precision: torch.dtype) -> "Recording":
        """Record uint8 images of a shape, on the current stream."""
        images = torch.zeros(tuple(shape), dtype=torch.uint8, device=mixer.device)
        plan = MixPlan(lam=torch.full((shape[0],), 0.5), partner=torch.arange(shape[0])).to(mixer.device)
        for _ in range(_TRIALS):
            mixer.mask_logits(images, plan, precision=precision)
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(mixer.device)
        # Other threads go on sending pixels to the GPU, which the strictest mode would forbid.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            logits = mixer.mask_logits(images, plan, precision=precision)
        return cls(graph, images, plan, logits)

    def replay(self, images: Tensor, plan: MixPlan) -> Tensor:
        """Compute the logits [N, 1, h, w] of N images, as many as were recorded or fewer."""
        num_images = len(images)
        # What lies behind them, from earlier replays, is computed too: rows depend on their partners alone.
        self._images[:num_images].copy_(images)
        self._plan.lam[:num_images].copy_(plan.lam)
        self._plan.partner[:num_images].copy_(plan.partner)
        self._graph.replay()
        return self._logits[:num_images].clone()


class Graphs:
    """The recordings of all mixers; those of a mixer go with it."""

    def __init__(self, sizes: Sequence[int], precision: torch.dtype) -> None:
        self._sizes = sizes
        self._precision = precision
        self._recordings: weakref.WeakKeyDictionary[FrozenMixer, dict[tuple[int, ...], Recording]]
        self._recordings = weakref.WeakKeyDictionary()

    @torch.inference_mode()
    def record(self, mixer: FrozenMixer, side: int, stream: torch.cuda.Stream) -> None:
        """Record square images of that side, in pixels, in all numbers, on the stream they will be replayed on."""
        of_mixer = self._recordings.setdefault(mixer, {})
        with torch.cuda.stream(stream):
            for size in self._sizes:
                shape = (size, 3, side, side)
                of_mixer[shape] = Recording.make(mixer, shape, self._precision)

    def mask_logits(self, mixer: FrozenMixer, images: Tensor, plan: MixPlan) -> Tensor:
        """Predict logits by a recording, or the plain way where none fits; on the current stream."""
        size = next_size(len(images), self._sizes)
        recording = self._recordings.get(mixer, {}).get((size, *images.shape[1:]))
        if recording is None or images.dtype != torch.uint8:
            return mixer.mask_logits(images, plan, precision=self._precision)
        return recording.replay(images, plan)


def next_size(num_images: int, sizes: Sequence[int]) -> int:
    """Choose the smallest of the ascending sizes that is large enough; the number itself where none is."""
    return next((size for size in sizes if size >= num_images), num_images)
