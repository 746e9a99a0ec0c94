"""Averages over the steps of an epoch, kept as sums that a checkpoint can hold.

An epoch that was interrupted and taken up again reports what an uninterrupted one would: the same numbers are added in
the same order, so that loss and figures agree to the last bit.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.loop import Step


@dataclass(kw_only=True, slots=True)
class Tally:
    """Sums over steps of one rank."""

    steps: int = 0
    """How many were added."""
    loss: float = 0.0
    """Sum of their losses."""
    lr: float = 0.0
    """Learning rate of the last one."""
    images: int = 0
    """Of all ranks, each of which has batches of the same size."""
    seconds: float = 0.0
    """Time they took."""
    waited_s: float = 0.0
    """Part of it in which this rank waited for mixed batches."""
    figures: dict[str, float] = field(default_factory=dict)
    """Sums of what else the method measured, which is the same at every step."""

    def add(self, step: Step, *, world_size: int) -> None:
        """Add one step of this rank."""
        assert not self.steps or self.figures.keys() == step.figures.keys()
        self.steps += 1
        self.loss += step.loss
        self.lr = step.lr
        self.images += world_size * step.images
        self.seconds += step.duration_s
        self.waited_s += step.waited_s
        for name, value in step.figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value

    def averages(self) -> dict[str, float]:
        """Average all that was added, rounded for a log."""
        return {
            "loss": round(self.loss / self.steps, 4),
            "lr": float(f"{self.lr:.6g}"),  # a cosine ends far below any fixed number of digits
            "wait_share": round(self.waited_s / self.seconds, 4),
            "images_per_s": round(self.images / self.seconds, 1),
            **self.figure_averages(),
        }

    def figure_averages(self) -> dict[str, float]:
        """Average what else the method measured, rounded for a log."""
        return {name: round(value / self.steps, 4) for name, value in self.figures.items()}


@dataclass(kw_only=True, slots=True)
class EpochTally:
    """The sums of an epoch, and those since its last line in the log."""

    whole: Tally = field(default_factory=Tally)
    """Since the epoch began, in whichever process."""
    window: Tally = field(default_factory=Tally)
    """Since the last line in the log."""

    def add(self, step: Step, *, world_size: int) -> None:
        """Add one step of this rank."""
        self.whole.add(step, world_size=world_size)
        self.window.add(step, world_size=world_size)

    def close_window(self) -> Tally:
        """Return the sums since the last line, and begin anew."""
        closed, self.window = self.window, Tally()
        return closed

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs: plain numbers by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.whole, self.window = Tally(**state["whole"]), Tally(**state["window"])
