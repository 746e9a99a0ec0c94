"""What every mixer can do, wherever it runs: frozen in this process, on a server, or a hand-crafted policy."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from torch import Tensor

from samix.mixing.batch import MixedBatch


class Mixer(Protocol):
    """Turns a batch into a mixed batch; a pure function of the images, the plan and the weights."""

    def mix(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        seed: int | None = None,
        lam: float | Tensor | None = None,
        partner: Tensor | None = None,
    ) -> MixedBatch:
        """Mix one batch.

        Args:
            images: uint8, or float in [0, 1], [B, 3, H, W], not normalised.
            labels: int64 [B], or None.
            seed: draws what is not given of lam and partner, and whatever else the mixer draws.
            lam: share of each image in its own mix, one number or float32 [B].
            partner: int64 [B], a permutation.

        Raises:
            BadBatch: if something is wrong with the batch or the plan.
            MixerError: if a remote mixer could not answer.
        """
        ...

    def stream(
        self, batches: Iterable[tuple[Tensor, Tensor | None]], *, seed: int, depth: int = 4
    ) -> Iterator[MixedBatch]:
        """Mix (images, labels) batches in order; batch i draws its plan from (seed, i).

        Args:
            batches: what to mix; read up to `depth` batches ahead by a remote mixer.
            seed: where the plans come from.
            depth: batches under way at once; 1 where nothing can overlap.
        """
        ...
