"""What every training method is: a module that holds all it teaches, and turns a batch into losses.

DDP wraps it whole, so one forward must hold every use of every parameter: two forwards before one backward would reduce
gradients twice.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from samix.mixing.classifier import Classifier
from trainer.export import Origin

Head = Callable[[Tensor], Tensor]
"""From images float [B, 3, H, W] in [0, 1] to logits [B, K]."""


class Item(Protocol):
    """What a method takes: a batch, prepared by the batch mixing that belongs to it."""

    def __len__(self) -> int:
        """Count the images."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What one batch cost; scalars."""

    total: Tensor
    """With a gradient: the sum of all that is minimised."""
    classifier: Tensor
    """The classifier's part, which logs and curves show."""
    figures: Mapping[str, Tensor]
    """What else the method measured, by the name it has in logs."""


class Method(nn.Module, ABC):
    """A classifier, and how a batch teaches it."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    @abstractmethod
    def forward(self, item: Any) -> Losses:
        """Turn what the batch mixing of this method yields into losses."""

    def updated(self, item: Any) -> None:
        """Follow up after the optimisers have stepped on `item`."""

    def epoch_done(self, figures: Mapping[str, float], progress: float) -> None:
        """Remark on the averages of an epoch; `progress` is the share of the run that is done."""

    def further_heads(self) -> dict[str, Head]:
        """Name what is worth an accuracy of its own at the end of the run, beside the classifier."""
        return {}

    def further_state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the classifier and the optimisers."""
        return {}

    def load_further_state(self, state: dict[str, Any]) -> None:
        """Take up what `further_state` returned.

        Raises:
            RuntimeError: if it is of another method.
        """
        if state:
            raise RuntimeError(f"it holds {', '.join(sorted(state))}, which this method does not have")

    def export(self, folder: Path, origin: Origin, pictures: Tensor) -> dict[str, Any]:  # noqa: ARG002
        """Write what the run leaves beside the classifier; returns what its summary says about it."""
        return {}
