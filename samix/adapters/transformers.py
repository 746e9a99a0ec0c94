"""Learned mixing for the `Trainer` of Hugging Face: a data collator, and a trainer that keeps it to training.

    mix = MixCollator(load_mixer("mixer.safetensors"), num_classes=1000, seed=0)
    trainer = MixTrainer(model=model, args=args, train_dataset=..., eval_dataset=..., mix=mix)

What changes: labels are soft in training, so the loss is `soft_cross_entropy` (models would take floating-point labels
for several classes at once). Evaluation is not mixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)

from samix.adapters.soft_mixing import SoftMixing


@dataclass(kw_only=True, eq=False)
class MixCollator(SoftMixing):
    """A data collator whose batches are mixed; for the other settings see `SoftMixing`.

    A plain `Trainer` uses one collator for everything: give it this one only where nothing is evaluated.
    """

    collate: Callable[[list[Any]], dict[str, Any]] = default_data_collator
    """Makes a batch of samples."""
    images: str = "pixel_values"
    """Key of the images in a batch."""
    labels: str = "labels"
    """Key of the labels in a batch."""

    def __call__(self, features: list[Any]) -> dict[str, Any]:
        """Collate and mix: images as they were normalised, labels float32 [B, K].

        Raises:
            BadBatch: if the tensors are not what they should be.
            MixerError: if a remote mixer could not answer.
        """
        batch = self.collate(features)
        images, targets = self.mix(batch[self.images], batch[self.labels])
        return {**batch, self.images: images, self.labels: targets}


def soft_cross_entropy(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Compute the loss for `Trainer(compute_loss_func=...)`, from integer labels [B] or soft ones [B, K].

    Args:
        outputs: of the model, with `logits` [B, K].
        labels: integers, or shares of the classes.
        num_items_in_batch: entries of all labels of an optimiser's step, which the trainer counts; a soft label has K.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    if num_items_in_batch is None:
        return F.cross_entropy(logits, labels)
    images = num_items_in_batch / (labels.shape[1] if labels.dim() == 2 else 1)
    total = F.cross_entropy(logits, labels, reduction="sum")
    return total / (images.to(total.device) if isinstance(images, Tensor) else images)


class MixTrainer(Trainer):
    """A `Trainer` that trains on mixed batches and evaluates on plain ones; draws resume, each rank has its own."""

    def __init__(self, *args: Any, mix: MixCollator, **kwargs: Any) -> None:
        """Take the arguments of `Trainer`, and the collator of its training batches."""
        super().__init__(*args, **{"compute_loss_func": soft_cross_entropy, **kwargs})
        self.mix = mix
        mix.rank = self.args.process_index
        self.add_callback(_Resuming(mix))

    def get_train_dataloader(self) -> DataLoader:
        """Make the loader of the training batches, which alone are mixed."""
        plain, self.data_collator = self.data_collator, self.mix
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = plain


class _Resuming(TrainerCallback):
    """Counts the batches of the steps that a checkpoint has behind it."""

    def __init__(self, mix: MixCollator) -> None:
        self._mix = mix

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        self._mix.drawn = state.global_step * args.gradient_accumulation_steps
