"""The rows of a run as scalars for TensorBoard, which is an optional dependency."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samix.errors import ConfigError
from trainer.report import Row, RowSink
from trainer.world import World

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"

_PLACES = {"event", "seconds", "epoch", "step", "of"}
"""Fields that say where a row stands rather than what was found."""


class TensorBoardSink:
    """Writes each number of a row as EVENT/NAME at the number of steps done so far, counted over all epochs.

    The writer opens with the first row: then it is known whether the run was resumed, and from where. What an earlier
    process had written for steps after that is hidden.
    """

    def __init__(self, folder: Path, *, steps_per_epoch: int) -> None:
        self._folder = folder
        self._steps_per_epoch = steps_per_epoch
        self._steps_done = 0
        self._writer: SummaryWriter | None = None

    def write(self, row: Row) -> None:
        """Write a row; it is on disk when this returns, as it is in log.jsonl, so that a kill loses no points."""
        writer = self._writer = self._writer or self._open()
        steps = row["epoch"] * self._steps_per_epoch
        if "step" in row:
            steps += row["step"] - self._steps_per_epoch
        for name, value in row.items():
            if name not in _PLACES and isinstance(value, int | float):
                writer.add_scalar(f"{row['event']}/{name}", value, steps)
        writer.flush()

    def reopen(self, epoch: int, step: int) -> None:
        """Hide the points after `step` steps of the epoch after `epoch` whole ones."""
        self._steps_done = epoch * self._steps_per_epoch + step

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self._folder), purge_step=self._steps_done + 1)


def tensorboard_sinks(is_wanted: bool, out: Path, world: World, *, steps_per_epoch: int) -> Sequence[RowSink]:
    """Make the sink of `--tensorboard` for `RunLog`, on the main rank.

    Args:
        is_wanted: whether the flag was given; without it nothing is imported.
        out: folder of the run; the events go to `tensorboard` in it.
        world: whose main rank writes.
        steps_per_epoch: steps of a whole epoch.

    Raises:
        ConfigError: if the package is not installed.
    """
    if not (is_wanted and world.is_main):
        return ()
    try:
        import torch.utils.tensorboard  # noqa: F401 - whether it is there is asked before the first step
    except ImportError as error:
        cure = "pip install 'samix-service[tensorboard]'"
        raise ConfigError(f"--tensorboard needs the package tensorboard ({error}); {cure}") from error
    return (TensorBoardSink(out / FOLDER, steps_per_epoch=steps_per_epoch),)
