"""A mixer that is asked batch after batch, and answers with soft targets."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from samix.adapters.soft_batches import SoftBatches, check_share
from samix.mixing.batch import as_unit_float
from samix.mixing.plan import check_alpha, derive_seed, draw_plan, generator_for


@dataclass(kw_only=True, eq=False)
class SoftMixing(SoftBatches):
    """Mixes the batches of any training loop; for the other settings see `SoftBatches`.

    In a worker of a DataLoader, which is a copy of this process, the draws come from the worker's seed too: they repeat
    with the `generator` of the loader, and are not counted here.
    """

    prob: float = 1.0
    """Share of the batches that are mixed."""
    alpha: float | None = None
    """Both parameters of the Beta distribution of lam; None leaves it to the mixer, which is 2 for learned ones."""
    enabled: bool = field(default=True, init=False)
    """Set to False to mix no more; the targets stay soft."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work; see `SoftBatches`."""
        super().__post_init__()
        check_share("prob", self.prob)
        if self.alpha is not None:
            check_alpha(self.alpha)

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the next batch, on the device of its images.

        Args:
            images: uint8 or float in [0, 1], or normalised by `mean` and `std`, [B, 3, H, W]. Not changed.
            labels: integers [B], or shares float [B, K].

        Returns:
            Images of the same dtype (float32 in [0, 1] for uint8), normalised as they were, and targets float32 [B, K].

        Raises:
            BadBatch: if images or labels are not what they should be.
            MixerError: if a remote mixer could not answer; the batch is not counted then.
        """
        seed = derive_seed(self.seed, self.rank, *_worker(), self.drawn)
        targets = self._targets(images, labels)
        if self.enabled and self._is_drawn(seed):
            images, targets = self._mixed(images, targets, seed)
        elif not images.is_floating_point():
            images = as_unit_float(images)
        self.drawn += 1
        return images, targets

    def _mixed(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        pixels, positions = self._as_sent(images)
        mixed = self.mixer.mix(pixels, positions, seed=derive_seed(seed, "mix"), lam=self._draw_lam(seed))
        return self._as_received(mixed, targets, images.dtype)

    def _is_drawn(self, seed: int) -> bool:
        return self.prob == 1 or torch.rand((), generator=generator_for(seed, "prob")).item() < self.prob

    def _draw_lam(self, seed: int) -> float | None:
        if self.alpha is None:
            return None
        return draw_plan(1, alpha=self.alpha, generator=generator_for(seed, "lam")).lam.item()


def _worker() -> tuple[int, ...]:
    worker = get_worker_info()
    return () if worker is None else (worker.seed,)
