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

from samix.adapters.normalisation import Normalisation
from samix.adapters.targets import mixed_targets, soft_targets
from samix.errors import ConfigError
from samix.mixing.plan import derive_seed
from samix.mixing.protocol import Mixer


@dataclass(kw_only=True, eq=False)
class MixedLoader:
    """Yields (images, targets) for the (images, labels) of another loader, one epoch each time it is iterated over."""

    mixer: Mixer = field(kw_only=False)
    """Of `load_mixer` or `connect`; only a remote one works ahead."""
    loader: Iterable[Sequence[Tensor]] = field(kw_only=False)
    """Yields images [B, 3, H, W], uint8 or float in [0, 1] or normalised, and labels, integers [B] or shares [B, K]."""
    num_classes: int
    """K, the width of the targets."""
    seed: int
    """Where all draws come from, with the number of the epoch. Give each rank another."""
    depth: int = 4
    """Batches under way at once; the loader is read so far ahead."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    mean: Sequence[float] | None = None
    """What the pipeline subtracted from pixels in [0, 1], by channel; None where the images are not normalised."""
    std: Sequence[float] | None = None
    """What it divided by."""
    clamp: bool = False
    """Bring normalised pixels that no picture has into its range, instead of refusing them."""
    epochs: int = field(default=0, init=False)
    """How many were begun; the number of the next one."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            ConfigError: if mean and std do not belong together.
        """
        self._normalisation = Normalisation.of(self.mean, self.std, clamp=self.clamp)

    def __len__(self) -> int:
        return len(cast(Collection[Any], self.loader))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Mix one epoch.

        Raises:
            BadBatch: while iterating, if images or labels are not what they should be.
            MixerError: while iterating, if a remote mixer could not answer; the epoch then ends.
        """
        seed = derive_seed(self.seed, self.epochs)
        self.epochs += 1
        under_way: deque[tuple[Tensor, torch.dtype]] = deque()
        for mixed in self.mixer.stream(self._sent(under_way), seed=seed, depth=self.depth):
            targets, dtype = under_way.popleft()
            assert mixed.labels_b is not None
            images = (
                mixed.images.to(dtype) if self._normalisation is None else self._normalisation.redo(mixed.images, dtype)
            )
            yield images, mixed_targets(targets, mixed.labels_b, mixed.lam)

    def state_dict(self) -> dict[str, Any]:
        """Tell which epoch comes next, for a checkpoint between epochs."""
        return {"seed": self.seed, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epoch that came next.

        Raises:
            ConfigError: if that run had another seed.
        """
        if state_dict["seed"] != self.seed:
            raise ConfigError(f"the checkpoint was drawn with seed {state_dict['seed']}, got {self.seed}; use the same")
        self.epochs = state_dict["epochs"]

    def _sent(self, under_way: deque[tuple[Tensor, torch.dtype]]) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.loader:
            pixels = images if self._normalisation is None else self._normalisation.undo(images)
            dtype = images.dtype if images.is_floating_point() else torch.float32
            under_way.append((soft_targets(labels, self.num_classes, self.label_smoothing), dtype))
            # Positions instead of labels: who is mixed with whom then comes back, whatever the labels are.
            yield pixels, torch.arange(len(images), device=images.device)
