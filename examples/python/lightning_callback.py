"""A Lightning module that was written without mixing, and a callback that mixes its training batches.

python examples/python/lightning_callback.py --data SHARDS --mixer MIXER.safetensors
"""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from setting import Pictures, normalise, open_mixer, parse_options, report, training_loader
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.models import resnet18

from samix.adapters.lightning import MixCallback
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD


class Classifier(LightningModule):
    """A ResNet that notes its losses."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.model = resnet18(num_classes=num_classes)
        self.losses: list[float] = []

    def training_step(self, batch: list[Tensor], _batch_idx: int) -> Tensor:
        """Compute the loss of a batch; cross-entropy takes labels and soft targets alike."""
        images, labels = batch
        loss = cross_entropy(self.model(images), labels)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        """Choose the optimiser."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main(arguments: list[str] | None = None) -> list[float]:
    """Train; returns the loss of each step."""
    options = parse_options(__doc__, arguments)
    torch.manual_seed(0)
    module = Classifier(options.num_classes)
    pictures = Pictures(options.data, "train", lambda image, label: (normalise(image), label))
    mix = MixCallback(
        open_mixer(options.mixer), num_classes=options.num_classes, seed=0, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    # before: without callbacks=
    trainer = Trainer(
        max_steps=options.steps,
        callbacks=[mix],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, training_loader(pictures, options.steps))
    report(module.losses)
    return module.losses


if __name__ == "__main__":
    main()
