"""Learned mixing in Lightning: a callback that mixes training batches and nothing else."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from serving import tiny_mixer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed; it comes with the extra [examples]")

from samix.adapters.lightning import MixCallback  # noqa: E402
from samix.errors import BadBatch  # noqa: E402

pytestmark = [
    # Of Lightning itself, with this torch and this machine.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]

NUM_CLASSES = 5


class Classifier(pl.LightningModule):
    """Notes the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, NUM_CLASSES))
        self.trained: list[Any] = []
        self.validated: list[Any] = []

    def training_step(self, batch: Any, _batch_idx: int) -> Tensor:
        images, labels = batch.values() if isinstance(batch, dict) else batch
        self.trained.append((images, labels))
        return torch.nn.functional.cross_entropy(self.model(images), labels)

    def validation_step(self, batch: Any, _batch_idx: int) -> None:
        self.validated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader(**settings: Any) -> DataLoader:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(8) % NUM_CLASSES), 4, **settings)


def fit(mix: MixCallback, batches: DataLoader, steps: int, **settings: Any) -> tuple[Classifier, Any]:
    trainer = pl.Trainer(
        max_steps=steps,
        callbacks=[mix],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    module = Classifier()
    trainer.fit(module, batches, loader(), **settings)
    return module, trainer


def test_training_batches_are_mixed_and_others_are_not():
    """`training_step` gets mixed images with soft targets, `validation_step` what the loader yields."""
    mix = MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0)

    module, _ = fit(mix, loader(), 2)

    for (images, targets), (plain, _) in zip(module.trained, loader(), strict=True):
        assert targets.shape == (4, NUM_CLASSES)
        assert not torch.equal(images, plain)
    for (images, labels), (plain, plain_labels) in zip(module.validated, loader(), strict=True):
        assert torch.equal(images, plain)
        assert torch.equal(labels, plain_labels)


def test_a_resumed_run_draws_on(tmp_path: Path):
    """The count of the draws is in Lightning's checkpoint: a run that goes on mixes as if it had not stopped."""
    whole, _ = fit(MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0), loader(), 4)
    _, trainer = fit(MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0), loader(), 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")

    rest, _ = fit(
        MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0), loader(), 4, ckpt_path=tmp_path / "half.ckpt"
    )

    assert len(rest.trained) == 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest.trained, whole.trained[2:], strict=True))


def test_the_rank_is_that_of_the_trainer():
    """A rank takes its number from Lightning, which tells it when training starts."""
    mix = MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0)

    mix.on_fit_start(SimpleNamespace(global_rank=3), None)

    assert mix.rank == 3


def test_a_batch_may_be_a_dictionary():
    """Images and labels may have keys instead of positions."""

    def by_name(samples: list[Any]) -> dict[str, Tensor]:
        images, labels = torch.utils.data.default_collate(samples)
        return {"picture": images, "class": labels}

    mix = MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0, images="picture", labels="class")

    module, _ = fit(mix, loader(collate_fn=by_name), 1)

    assert module.trained[0][1].shape == (4, NUM_CLASSES)


def test_a_batch_that_cannot_be_changed_is_refused():
    """The hook cannot return a batch, so a tuple is refused, with the cure."""
    mix = MixCallback(tiny_mixer(), num_classes=NUM_CLASSES, seed=0)

    with pytest.raises(BadBatch, match="a list or a dictionary to be mixed, got tuple"):
        mix.on_train_batch_start(None, None, (torch.rand(2, 3, 16, 16), torch.zeros(2)), 0)
