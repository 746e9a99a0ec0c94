"""Learned mixing in the Trainer of Hugging Face: a collator, a loss for soft labels, and plain evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from serving import tiny_mixer
from torch import Tensor

REASON = "transformers or accelerate is not installed; they come with the extra [examples]"
transformers = pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("accelerate", reason=REASON)

from samix.adapters.transformers import MixCollator, MixTrainer, soft_cross_entropy  # noqa: E402

NUM_CLASSES = 5


class Classifier(torch.nn.Module):
    """Notes the images and whether they were for training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3 * 16 * 16, NUM_CLASSES)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:  # noqa: ARG002
        self.seen.append((self.training, pixel_values))
        return {"logits": self.linear(pixel_values.flatten(1))}

    def images(self, *, of_training: bool) -> list[Tensor]:
        return [images for is_training, images in self.seen if is_training == of_training]


def features(size: int = 16) -> list[dict[str, Any]]:
    images = torch.rand(size, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": image, "labels": number % NUM_CLASSES} for number, image in enumerate(images)]


def collator(seed: int = 0) -> MixCollator:
    return MixCollator(tiny_mixer(), num_classes=NUM_CLASSES, seed=seed)


def trainer_of(folder: Path, **settings: Any) -> tuple[Any, Classifier]:
    torch.manual_seed(0)
    model = Classifier()
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "max_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "log_level": "error",
        "dataloader_pin_memory": False,
    }
    args = transformers.TrainingArguments(output_dir=str(folder), **usual | settings)
    data = features()
    return MixTrainer(model=model, args=args, train_dataset=data, eval_dataset=data, mix=collator()), model


def test_a_batch_is_collated_and_mixed():
    """Images are mixed, labels soft, and other keys pass."""
    samples = [{**sample, "id": number} for number, sample in enumerate(features(6))]

    batch = collator()(samples)

    assert batch["labels"].shape == (6, NUM_CLASSES)
    torch.testing.assert_close(batch["labels"].sum(dim=1), torch.ones(6))
    assert not torch.equal(batch["pixel_values"], torch.stack([sample["pixel_values"] for sample in samples]))
    assert batch["id"].tolist() == list(range(6))


def test_only_training_is_mixed(tmp_path: Path):
    """The trainer trains on mixed batches with the soft loss, and evaluates pictures as they are."""
    trainer, model = trainer_of(tmp_path, per_device_train_batch_size=8, max_steps=2)

    trainer.train()
    evaluated = trainer.evaluate()

    plain = torch.stack([sample["pixel_values"] for sample in features()])
    assert torch.equal(torch.cat(model.images(of_training=False)), plain)
    trained = model.images(of_training=True)
    assert [len(images) for images in trained] == [8, 8]
    for images in trained:  # of which a few are their own partners
        assert sum(any(torch.equal(image, other) for other in plain) for image in images) < 4
    assert 0 < evaluated["eval_loss"] < 10


def test_a_resumed_run_draws_on(tmp_path: Path):
    """A run that goes on from a checkpoint mixes its batches as if it had not stopped."""
    trainer, whole = trainer_of(tmp_path, save_strategy="steps", save_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    resuming, rest = trainer_of(tmp_path, gradient_accumulation_steps=2)

    resuming.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))

    images = rest.images(of_training=True)
    assert len(images) == 4
    for got, expected in zip(images, whole.images(of_training=True)[4:], strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("is_soft", [False, True])
def test_the_loss_is_the_mean_over_an_optimiser_step(is_soft: bool):
    """Parts of an accumulated batch add up to the loss of the whole, for labels of either kind."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, NUM_CLASSES, generator=generator)
    labels = torch.arange(8) % NUM_CLASSES
    if is_soft:
        labels = torch.rand(8, NUM_CLASSES, generator=generator).softmax(dim=1)
    counted = labels.ne(-100).sum()  # what the trainer counts

    parts = [
        soft_cross_entropy({"logits": logits[part]}, labels[part], num_items_in_batch=counted)
        for part in (slice(0, 3), slice(3, 8))
    ]

    torch.testing.assert_close(torch.stack(parts).sum(), soft_cross_entropy({"logits": logits}, labels))
    torch.testing.assert_close(torch.stack(parts).sum(), torch.nn.functional.cross_entropy(logits, labels))
