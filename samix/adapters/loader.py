"""A data loader whose batches arrive mixed: remote mixing hides behind the training step of any loop.

    for images, targets in MixedLoader(connect("host:8001"), loader, num_classes=1000, seed=0): ...

What changes: the loader is wrapped, and targets are soft. The mixes are those of `mixer.stream`.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from samix.adapters.soft_batches import SoftBatches
from samix.mixing.plan import derive_seed


@dataclass(kw_only=True, eq=False)
class MixedLoader(SoftBatches):
    """Yields (images, targets) for the (images, labels) of another loader, one epoch each time it is iterated over.

    Only a remote mixer works ahead. Checkpoints belong between epochs: the draws are counted by them. For the other
    settings see `SoftBatches`.
    """

    loader: Iterable[Sequence[Tensor]] = field(kw_only=False)
    """Yields images [B, 3, H, W], uint8 or float in [0, 1] or normalised, and labels, integers [B] or shares [B, K]."""
    depth: int = 4
    """Batches under way at once; the loader is read so far ahead."""

    def __len__(self) -> int:
        return len(cast(Collection[Any], self.loader))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mix one epoch.

        Raises:
            BadBatch: while iterating, if images or labels are not what they should be.
            MixerError: while iterating, if a remote mixer could not answer; the epoch then ends.
        """
        seed = derive_seed(self.seed, self.rank, self.drawn)
        self.drawn += 1
        under_way: deque[tuple[Tensor, torch.dtype]] = deque()
        for mixed in self.mixer.stream(self._sent(under_way), seed=seed, depth=self.depth):
            yield self._as_received(mixed, *under_way.popleft())

    def _sent(self, under_way: deque[tuple[Tensor, torch.dtype]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            under_way.append((self._targets(images, labels), images.dtype))
            yield self._as_sent(images)
