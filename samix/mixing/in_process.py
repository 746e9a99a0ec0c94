"""What mixers in this process share: the methods of the `Mixer` protocol around one way to mix a batch."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from samix.mixing.batch import MixedBatch
from samix.mixing.plan import generator_for


class InProcessMixer(ABC):
    """A mixer whose batches are made here and now; nothing overlaps."""

    __slots__ = ()

    def mix(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int | None = None,
        lam: float | Tensor | None = None,
        partner: Tensor | None = None,
    ) -> MixedBatch:
        """Mix one batch; see `Mixer.mix`."""
        generator = None if seed is None else generator_for(seed)
        return self._mix(images, labels, lam, partner, generator)

    def stream(
        self,
        batches: Iterable[tuple[Tensor, Tensor | None]],
        *,
        seed: int,
        depth: int = 4,  # noqa: ARG002 - nothing overlaps in process
    ) -> Iterator[MixedBatch]:
        """Mix batches in order; see `Mixer.stream`."""
        for index, (images, labels) in enumerate(batches):
            yield self._mix(images, labels, None, None, generator_for(seed, index))

    @abstractmethod
    def _mix(
        self,
        images: Tensor,
        labels: Tensor | None,
        lam: float | Tensor | None,
        partner: Tensor | None,
        generator: torch.Generator | None,
    ) -> MixedBatch:
        """Check the batch, complete its plan by drawing from `generator` (None without a seed), and mix it."""
