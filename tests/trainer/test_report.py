"""What a run leaves for people."""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread
from training import ALONE

from trainer.loop import Step
from trainer.report import RunLog, average_figures, draw_comparison, draw_curves, follow, write_summary


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write_epochs(folder: Path, count: int) -> RunLog:
    run_log = RunLog(folder, is_writer=True)
    for epoch in range(count):
        run_log.write("epoch", epoch=epoch + 1, loss=2 / (epoch + 1), top1=0.5, wait_share=0.01)
    return run_log


def ink(path: Path) -> float:
    """Share of a picture that is coloured: neither white nor grey."""
    pixels = imread(path)[:, :, :3]
    return float((pixels.max(axis=2) - pixels.min(axis=2) > 0.3).mean())


def steps(count: int, seconds: float = 0.5) -> Iterator[Step]:
    return (
        Step(
            loss=float(number),
            lr=0.1,
            images=4,
            duration_s=seconds,
            waited_s=seconds / 4,
            figures={"spread": number / 10},
        )
        for number in range(count)
    )


def test_log_is_one_object_a_line(tmp_path: Path):
    """Events are appended as JSON lines with the seconds since the start, and remembered by kind."""
    run_log = RunLog(tmp_path, is_writer=True)

    run_log.write("step", loss=1.0)
    run_log.write("epoch", top1=0.5)

    written = rows(tmp_path)
    assert [row["event"] for row in written] == ["step", "epoch"]
    assert all(row["seconds"] >= 0 for row in written)
    assert run_log.of("epoch") == written[1:]


def test_log_replaces_that_of_the_run_before(tmp_path: Path):
    """A run in the same folder starts its log anew."""
    write_epochs(tmp_path, 3)

    write_epochs(tmp_path, 1)

    assert len(rows(tmp_path)) == 1


def test_only_the_main_rank_writes(tmp_path: Path):
    """The other ranks remember their events and write nothing."""
    run_log = RunLog(tmp_path, is_writer=False)

    run_log.write("epoch", top1=0.5)

    assert [row["top1"] for row in run_log.of("epoch")] == [0.5]
    assert list(tmp_path.iterdir()) == []


def test_steps_pass_through_and_are_averaged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Every step passes; each full window leaves its mean loss, the speed of all ranks and the time that is left."""
    run_log = RunLog(tmp_path, is_writer=True)
    world = replace(ALONE, size=2)

    with caplog.at_level(logging.INFO, "trainer"):
        passed = list(follow(steps(5), epoch=1, total=5, every=2, run_log=run_log, world=world))

    assert [step.loss for step in passed] == [0, 1, 2, 3, 4]
    assert [row["loss"] for row in rows(tmp_path)] == [0.5, 2.5]
    assert [row["step"] for row in rows(tmp_path)] == [2, 4]
    assert [row["spread"] for row in rows(tmp_path)] == [0.05, 0.25]
    assert rows(tmp_path)[0]["images_per_s"] == 2 * 4 / 0.5
    assert [vars(record)["epoch_eta_s"] for record in caplog.records] == [2, 0]


def test_figures_are_averaged_by_name():
    """What a method measures is averaged under its own name; a method that measures nothing adds nothing."""
    measured = list(steps(4))
    silent = [replace(step, figures={}) for step in measured]

    assert average_figures(measured) == {"spread": 0.15}
    assert average_figures(silent) == {}


def test_summary_appears_whole(tmp_path: Path):
    """The summary is JSON and replaces the one before; no half-written file stays."""
    path = tmp_path / "summary.json"
    write_summary(path, {"top1": 0.1})

    write_summary(path, {"top1": 0.9})

    assert json.loads(path.read_text()) == {"top1": 0.9}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    """A failure while writing leaves the summary of before."""
    path = tmp_path / "summary.json"
    write_summary(path, {"top1": 0.1})

    with pytest.raises(TypeError):
        write_summary(path, {"top1": object()})

    assert json.loads(path.read_text()) == {"top1": 0.1}


@pytest.mark.parametrize("epochs", [1, 3])
def test_curves_show_something(tmp_path: Path, epochs: int):
    """Curves are visible, also those of a run of a single epoch."""
    run_log = write_epochs(tmp_path, epochs)

    draw_curves(tmp_path / "curves.png", run_log, "a run")

    assert ink(tmp_path / "curves.png") > 1e-4


def test_comparison_shows_something(tmp_path: Path):
    """Runs are drawn into one picture from their logs."""
    for name in ("remote", "none"):
        (tmp_path / name).mkdir()
        write_epochs(tmp_path / name, 2)

    draw_comparison(tmp_path / "both.png", [tmp_path / "remote", tmp_path / "none"])

    assert ink(tmp_path / "both.png") > 1e-4
