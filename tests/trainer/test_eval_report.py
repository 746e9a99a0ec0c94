"""An evaluation of a checkpoint leaves figures, a table, a picture and lines to read."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch import Tensor, nn
from training import ALONE, join_as, spawn_two_ranks

from samix.errors import ConfigError
from services.shards.dataset import Batch
from trainer.eval_report import evaluate_run
from trainer.evaluate import Evaluation
from trainer.pictures.evaluation import worst_classes
from trainer.world import World

FILES = {"evaluation.json", "per_class.csv", "evaluation.png"}


class Answers(nn.Module):
    """Answers with the class that the first red byte of an image names, out of `num_classes`, more or less surely."""

    def __init__(self, num_classes: int, sureness: float = 2.0) -> None:
        super().__init__()
        self._scores = sureness * torch.eye(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self._scores[images[:, 0, 0, 0].mul(255).round().long()]


def batch(answers: Sequence[int], labels: Sequence[int]) -> Batch:
    images = torch.tensor(answers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    return Batch(images=images, labels=torch.tensor(labels), positions=torch.arange(len(labels)))


def report(
    out: Path, batches: list[Batch], num_classes: int, classes: Sequence[str] = (), world: World = ALONE
) -> Evaluation:
    model = Answers(num_classes)
    about = {"recipe": "r50", "checkpoint": "runs/r50/best.pt"}
    return evaluate_run(model, batches, world, model, out, num_classes=num_classes, classes=classes, about=about)


def test_figures_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """All figures stand in evaluation.json, those of classes in per_class.csv too, and the main ones are printed."""
    names = ["tench", 'a, "b"', "$x$", "nobody"]

    found = report(tmp_path, [batch([0, 1, 1], [0, 1, 0]), batch([0], [2])], 4, names)

    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["recipe"] == "r50"
    assert written["world_size"] == 1
    assert written["samples"] == sum(each["samples"] for each in written["bins"]) == 4
    for name in ("top1", "top5", "cross_entropy", "calibration_error", "images_per_s"):
        assert written[name] == getattr(found, name)
    with (tmp_path / "per_class.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["class", "name", "samples", "top1"],
            ["0", "tench", "2", "0.5"],
            ["1", 'a, "b"', "1", "1.0"],
            ["2", "$x$", "1", "0.0"],
            ["3", "nobody", "0", ""],
        ]
    assert [each["top1"] for each in written["classes"]] == [0.5, 1.0, 0.0, None]
    printed = capsys.readouterr().out
    assert f"top-1               {2 / 4:.2%}" in printed
    assert "0.0%  $x$ (0 of 1)" in printed
    assert {entry.name for entry in tmp_path.iterdir()} == FILES


def test_classes_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Where no index names the classes, they go by their numbers."""
    report(tmp_path, [batch([0, 0], [0, 1])], 2)

    assert "0.0%  class 1 (0 of 1)" in capsys.readouterr().out


def test_worst_classes():
    """The worst classes come first, equal ones by number; a class without samples is none of them."""
    counts = {"class_samples": (4, 0, 2, 4, 1), "class_right": (4, 0, 1, 2, 0)}
    figures = {"top1": 0.5, "top5": 1.0, "samples": 11, "cross_entropy": 1.0, "bins": (), "seconds": 1.0}

    found = Evaluation(**counts, **figures)

    assert worst_classes(found, 3) == [4, 2, 3]


@pytest.mark.parametrize("num_classes", [3, 41])
def test_picture_shows_good_and_bad_classes(tmp_path: Path, num_classes: int):
    """Classes are drawn in blue and the worst of them in red, be they few or many."""
    labels = list(range(num_classes))

    report(tmp_path, [batch([0, *labels[1:]], [1, *labels[1:]])], num_classes)

    pixels = (imread(tmp_path / "evaluation.png")[:, :, :3] * 255).round().astype(int)
    ink = {
        name: np.all(pixels == rgb, axis=2).sum()
        for name, rgb in {"red": (214, 39, 40), "blue": (31, 119, 180)}.items()
    }
    assert min(ink.values()) > 200, ink


def test_broken_weights_are_refused(tmp_path: Path):
    """Weights that answer with what is no number leave no figures."""
    model = Answers(3, sureness=float("nan"))

    with pytest.raises(ConfigError, match="cross-entropy is nan"):
        evaluate_run(model, [batch([0], [0])], ALONE, model, tmp_path, num_classes=3, about={})

    assert list(tmp_path.iterdir()) == []


def report_as_rank(rank: int, port: int, folder: Path) -> None:
    """Evaluate two samples on rank 0 and one on rank 1."""
    with join_as(rank, port) as world:
        out = folder / str(rank)
        out.mkdir()
        report(out, [batch([0, 1], [0, 1])] if rank == 0 else [batch([0], [1])], 2, world=world)


@pytest.mark.slow
def test_one_report_of_all_ranks(tmp_path: Path):
    """Several ranks make one report, of all their samples."""
    spawn_two_ranks(report_as_rank, tmp_path)

    written = json.loads((tmp_path / "0" / "evaluation.json").read_text())
    assert (written["samples"], written["top1"], written["world_size"]) == (3, 2 / 3, 2)
    assert list((tmp_path / "1").iterdir()) == []
