"""Learned mixing for a Lightning `Trainer`: a callback that mixes each training batch on its device.

    trainer = Trainer(callbacks=[MixCallback(load_mixer("mixer.safetensors"), num_classes=1000, seed=0)])

What changes: `training_step` gets soft targets, which `cross_entropy` takes as they are. Validation is not mixed. The
count of the draws is in Lightning's checkpoints, and each rank draws its own. Each batch waits for its mix;
`MixedLoader` overlaps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from samix.adapters.soft_mixing import SoftMixing
from samix.errors import BadBatch

if TYPE_CHECKING:
    from lightning.pytorch import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ModuleNotFoundError:  # the same code under its older name
        from pytorch_lightning import Callback


@dataclass(kw_only=True, eq=False)
class MixCallback(SoftMixing, Callback):
    """Mixes training batches in place; for the other settings see `SoftMixing`."""

    images: int | str = 0
    """Where a batch has its images: a position in a list, or the key of a dictionary."""
    labels: int | str = 1
    """Where it has its labels."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Take the rank from Lightning, which knows it only now."""
        self.rank = trainer.global_rank

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Replace images and labels of the batch; the hook can return nothing, so the batch itself is changed.

        Raises:
            BadBatch: if the batch is neither a list nor a dictionary, or its tensors are not what they should be.
            MixerError: if a remote mixer could not answer.
        """
        if not isinstance(batch, list | dict):
            raise BadBatch(
                f"a batch must be a list or a dictionary to be mixed, got {type(batch).__name__}; collate it so"
            )
        batch[self.images], batch[self.labels] = self.mix(batch[self.images], batch[self.labels])  # pyright: ignore
