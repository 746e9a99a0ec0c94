"""What every adapter is told, and what its batches go through on their way to a mixer and back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samix.adapters.normalisation import Normalisation
from samix.adapters.targets import mixed_targets, soft_targets
from samix.errors import BadBatch, ConfigError
from samix.mixing.batch import MixedBatch
from samix.mixing.protocol import Mixer


@dataclass(kw_only=True, eq=False)
class SoftBatches:
    """Settings and count of an adapter; its draws come from (seed, rank, count), so that a run can be repeated."""

    mixer: Mixer = field(kw_only=False)
    """Of `load_mixer`, `connect` or `hand_crafted`."""
    num_classes: int
    """K, the width of the targets."""
    seed: int
    """Where all draws come from; the same on all ranks."""
    rank: int = 0
    """Number of this process in a distributed run; ranks of one number mix with the same partners and lam."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    mean: Sequence[float] | None = None
    """What the pipeline subtracted from pixels in [0, 1], by channel; None where the images are not normalised."""
    std: Sequence[float] | None = None
    """What it divided by."""
    clamp: bool = False
    """Bring normalised pixels that no picture has into its range, instead of refusing them."""
    drawn: int = field(default=0, init=False)
    """How many batches (epochs, of a loader) were drawn; the number of the next one."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ConfigError: if a number is out of bounds, or mean and std do not belong together.
        """
        if self.num_classes < 1:
            raise ConfigError(f"num_classes must be at least 1, got {self.num_classes}")
        check_share("label_smoothing", self.label_smoothing)
        self._normalisation = Normalisation.of(self.mean, self.std, clamp=self.clamp)

    def state_dict(self) -> dict[str, int]:
        """Tell how far the draws are, for a checkpoint; the same on all ranks."""
        return {"seed": self.seed, "drawn": self.drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another run stopped.

        Raises:
            ConfigError: if that run had another seed.
        """
        if state_dict["seed"] != self.seed:
            raise ConfigError(f"the checkpoint was drawn with seed {state_dict['seed']}, got {self.seed}; use the same")
        self.drawn = state_dict["drawn"]

    def _targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """Write labels, integers [B] or shares [B, K], as targets float32 [B, K] before mixing."""
        for name, tensor in (("images", images), ("labels", labels)):
            if not isinstance(tensor, Tensor):
                raise BadBatch(f"{name} must be a tensor, got {type(tensor).__name__}; mix batches that were collated")
        if labels.shape[:1] != images.shape[:1]:
            raise BadBatch(f"each image has one label, got images {list(images.shape)} and labels {list(labels.shape)}")
        return soft_targets(labels, self.num_classes, self.label_smoothing)

    def _as_sent(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give a mixer pixels that are not normalised, and positions [B] for labels.

        With positions, who is mixed with whom comes back, whatever the labels are.
        """
        pixels = images if self._normalisation is None else self._normalisation.undo(images)
        return pixels, torch.arange(len(images), device=images.device)

    def _as_received(self, mixed: MixedBatch, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make of a mix what the loop expects: images like those that went in, and the mixed targets."""
        assert mixed.labels_b is not None
        dtype = dtype if dtype.is_floating_point else torch.float32
        images = (
            mixed.images.to(dtype) if self._normalisation is None else self._normalisation.redo(mixed.images, dtype)
        )
        return images, mixed_targets(targets, mixed.labels_b, mixed.lam)


def check_share(name: str, share: float) -> None:
    """Refuse a share that is none.

    Raises:
        ConfigError: unless it lies in [0, 1].
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"{name} must lie in [0, 1], got {share}")
