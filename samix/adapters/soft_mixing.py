"""What the adapters share: a mixer that is asked batch after batch, and answers with soft targets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from samix.adapters.normalisation import Normalisation
from samix.adapters.targets import mixed_targets, soft_targets
from samix.errors import ConfigError
from samix.mixing.batch import as_unit_float
from samix.mixing.plan import check_alpha, derive_seed, draw_plan, generator_for
from samix.mixing.protocol import Mixer


@dataclass(kw_only=True, eq=False)
class SoftMixing:
    """Mixes batches of any training loop; batch n draws all it needs from (seed, n), so that a run can be repeated.

    In a worker of a DataLoader, which is a copy of this process, the draws come from (seed, the worker's seed, n): they
    repeat with the `generator` of the loader, and are not counted here.
    """

    mixer: Mixer = field(kw_only=False)
    """Of `load_mixer`, `connect` or `hand_crafted`."""
    num_classes: int
    """K, the width of the targets."""
    seed: int
    """Where all draws come from. Give each rank another, for example the run's seed plus the rank."""
    prob: float = 1.0
    """Share of the batches that are mixed."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    alpha: float | None = None
    """Both parameters of the Beta distribution of lam; None leaves it to the mixer, which is 2 for learned ones."""
    mean: Sequence[float] | None = None
    """What the pipeline subtracted from pixels in [0, 1], by channel; None where the images are not normalised."""
    std: Sequence[float] | None = None
    """What it divided by."""
    clamp: bool = False
    """Bring normalised pixels that no picture has into its range, instead of refusing them."""
    enabled: bool = field(default=True, init=False)
    """Set to False to mix no more; the targets stay soft."""
    batches: int = field(default=0, init=False)
    """How many batches were answered; the number of the next one."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ConfigError: if a number is out of bounds, or mean and std do not belong together.
        """
        if self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {self.num_classes}")
        for name, share in (("prob", self.prob), ("label_smoothing", self.label_smoothing)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {share}")
        if self.alpha is not None:
            check_alpha(self.alpha)
        self._normalisation = Normalisation.of(self.mean, self.std, clamp=self.clamp)

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
        seed = derive_seed(self.seed, *_worker(), self.batches)
        targets = soft_targets(labels, self.num_classes, self.label_smoothing)
        if self.enabled and self._is_drawn(seed):
            images, targets = self._mixed(images, targets, seed)
        elif not images.is_floating_point():
            images = as_unit_float(images)
        self.batches += 1
        return images, targets

    def state_dict(self) -> dict[str, Any]:
        """Tell how far the draws are, for a checkpoint."""
        return {"seed": self.seed, "batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another run stopped.

        Raises:
            ConfigError: if that run had another seed.
        """
        if state_dict["seed"] != self.seed:
            raise ConfigError(f"the checkpoint was drawn with seed {state_dict['seed']}, got {self.seed}; use the same")
        self.batches = state_dict["batches"]

    def _mixed(self, images: Tensor, targets: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        pixels = images if self._normalisation is None else self._normalisation.undo(images)
        # Positions instead of labels: who is mixed with whom then comes back, whatever the labels are.
        positions = torch.arange(len(images), device=images.device)
        mixed = self.mixer.mix(pixels, positions, seed=derive_seed(seed, "mix"), lam=self._draw_lam(seed))
        assert mixed.labels_b is not None
        targets = mixed_targets(targets, mixed.labels_b, mixed.lam)
        dtype = images.dtype if images.is_floating_point() else torch.float32
        if self._normalisation is None:
            return mixed.images.to(dtype), targets
        return self._normalisation.redo(mixed.images, dtype), targets

    def _is_drawn(self, seed: int) -> bool:
        return self.prob == 1 or torch.rand((), generator=generator_for(seed, "prob")).item() < self.prob

    def _draw_lam(self, seed: int) -> float | None:
        if self.alpha is None:
            return None
        return draw_plan(1, alpha=self.alpha, generator=generator_for(seed, "lam")).lam.item()


def _worker() -> tuple[int, ...]:
    worker = get_worker_info()
    return () if worker is None else (worker.seed,)
