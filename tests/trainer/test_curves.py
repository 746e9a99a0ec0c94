"""Curves of runs are drawn from their logs."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from trainer.pictures.curves import draw_comparison, draw_curves
from trainer.report import RunLog


def write_log(folder: Path, epochs: int, *, steps: int = 3, waits: bool = True) -> RunLog:
    run_log = RunLog(folder, is_writer=True)
    for epoch in range(1, epochs + 1):
        seen = {"loss": 2 / epoch, "images_per_s": 100.0, "wait_share": 0.01 if waits else 0.0}
        for step in range(1, steps + 1):
            run_log.write("step", epoch=epoch, step=step, of=steps, lr=0.1 / epoch, **seen)
        run_log.write("epoch", epoch=epoch, top1=0.5, lr=0.1 / epoch, **seen)
    return run_log


def ink(path: Path, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly one colour."""
    pixels = (imread(path)[:, :, :3] * 255).round().astype(int)
    return int(np.all(pixels == colour, axis=2).sum())


COLOURS = {
    "loss": (31, 119, 180),
    "top1": (44, 160, 44),
    "lr": (148, 103, 189),
    "images_per_s": (255, 127, 14),
    "wait_share": (214, 39, 40),
}


@pytest.mark.parametrize("epochs", [1, 300])
def test_every_curve_is_visible(tmp_path: Path, epochs: int):
    """Each curve leaves ink in its colour, also those of a run of a single epoch and of a long one."""
    draw_curves(tmp_path / "curves.png", write_log(tmp_path, epochs), "a run")

    found = {name: ink(tmp_path / "curves.png", colour) for name, colour in COLOURS.items()}
    assert min(found.values()) >= 4, found


def test_a_run_without_logged_steps(tmp_path: Path):
    """A run whose epochs are shorter than a window of the log has curves by epochs, also where nobody waited."""
    draw_curves(tmp_path / "curves.png", write_log(tmp_path, 2, steps=0, waits=False), "a run")

    found = {name: ink(tmp_path / "curves.png", colour) for name, colour in COLOURS.items()}
    assert min(found.values()) >= 4, found


def test_comparison_shows_all_runs(tmp_path: Path):
    """Runs are drawn into one picture from their logs."""
    for name in ("remote", "none"):
        (tmp_path / name).mkdir()
        write_log(tmp_path / name, 2)

    draw_comparison(tmp_path / "both.png", [tmp_path / "remote", tmp_path / "none"])

    assert ink(tmp_path / "both.png", (255, 127, 14)) >= 4
