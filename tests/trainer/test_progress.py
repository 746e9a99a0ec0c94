"""How a run goes on, in the log and on a terminal."""

import logging
import os
import pty
import sys
import termios
from contextlib import suppress
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from steps import make_steps
from training import ALONE, page_value

from trainer.loop import Step
from trainer.metrics import TrainerMetrics
from trainer.progress import follow
from trainer.report import RunLog
from trainer.tally import EpochTally


def show(run_log: RunLog, steps: list[Step], **settings: Any) -> list[Step]:
    tally = settings.pop("tally", None) or EpochTally()
    metrics = settings.pop("metrics", None) or TrainerMetrics(0)
    settings = {"epoch": 0, "total": 6, "every": 2, "world": ALONE, **settings}
    return list(follow(steps, run_log=run_log, tally=tally, metrics=metrics, **settings))


def test_steps_pass_through_and_are_averaged(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Every step passes; each full window leaves its averages, the speed of all ranks and the time that is left."""
    run_log = RunLog(tmp_path, is_writer=True)
    world = replace(ALONE, size=2)

    with caplog.at_level(logging.INFO, "trainer"):
        passed = show(run_log, make_steps(5), epoch=1, total=5, world=world, remaining_epochs=3)

    assert [step.loss for step in passed] == [0, 1, 2, 3, 4]
    assert [(row["epoch"], row["step"], row["of"]) for row in run_log.rows] == [(2, 2, 5), (2, 4, 5)]
    assert [row["loss"] for row in run_log.rows] == [0.5, 2.5]
    assert [row["spread"] for row in run_log.rows] == [0.05, 0.25]
    assert run_log.rows[0]["images_per_s"] == 2 * 4 / 0.5
    shown = [vars(record) for record in caplog.records]
    assert [(line["epoch_eta_s"], line["run_eta_s"]) for line in shown] == [(2, 9), (0, 8)]
    assert {"loss", "lr", "images_per_s", "wait_share"} <= shown[0].keys()


def test_other_ranks_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Only the main rank speaks."""
    with caplog.at_level(logging.INFO, "trainer"):
        show(RunLog(tmp_path, is_writer=False), make_steps(4), world=replace(ALONE, rank=1, size=2))

    assert caplog.records == []


@pytest.mark.parametrize("stopped_after", [1, 2, 3, 4, 5])
def test_resumed_epoch_leaves_the_rows_of_a_whole_one(tmp_path: Path, stopped_after: int):
    """An epoch stopped after any step and taken up again leaves the rows and sums of an uninterrupted one."""
    whole, parts, after = RunLog(tmp_path, is_writer=False), RunLog(tmp_path, is_writer=False), EpochTally()
    tally, before = EpochTally(), EpochTally()
    show(whole, make_steps(6), tally=tally)

    show(parts, make_steps(stopped_after), tally=before)
    after.load_state_dict(before.state_dict())
    show(parts, make_steps(6 - stopped_after, first=stopped_after), tally=after, first_step=stopped_after)

    assert [row | {"seconds": 0} for row in parts.rows] == [row | {"seconds": 0} for row in whole.rows]
    assert after == tally


def test_a_step_is_counted_when_it_is_passed_on(tmp_path: Path):
    """Whoever saves the tally at a step saves that step with it."""
    tally = EpochTally()
    steps = follow(
        make_steps(3),
        epoch=0,
        total=3,
        every=2,
        run_log=RunLog(tmp_path, is_writer=False),
        world=ALONE,
        tally=tally,
        metrics=TrainerMetrics(0),
    )

    counted = [tally.whole.steps for _ in steps]

    assert counted == [1, 2, 3]


def test_time_left_knows_evaluation(tmp_path: Path):
    """Once two epochs have ended, the rest of the run is reckoned by what lies between them, evaluation included."""
    run_log, metrics = RunLog(tmp_path, is_writer=False), TrainerMetrics(0)
    for number, ended in ((1, 50.0), (2, 60.0)):
        run_log.rows.append({"event": "epoch", "epoch": number, "seconds": ended})

    show(run_log, make_steps(2), epoch=2, metrics=metrics, remaining_epochs=4)

    assert page_value(generate_latest(metrics.registry).decode(), "trainer_eta_seconds") == 4 * 0.5 + 4 * 10


def read_all(screen: FileIO) -> str:
    """Read what a terminal shows once its program has gone; it hands that out in pieces, and ends with an error."""
    shown = b""
    with suppress(OSError):
        while piece := screen.read(1 << 16):
            shown += piece
    return shown.decode()


def test_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a terminal a bar shows the figures instead of log lines, and other lines stay whole."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 160))
    with os.fdopen(terminal, "w") as stderr, os.fdopen(controller, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", stderr)
        logging.basicConfig(
            level=logging.INFO, handlers=[logging.StreamHandler(stderr)], force=True, format="%(message)s"
        )
        steps = follow(
            make_steps(4),
            epoch=0,
            total=4,
            every=2,
            run_log=RunLog(tmp_path, is_writer=False),
            world=ALONE,
            tally=EpochTally(),
            metrics=TrainerMetrics(0),
            remaining_epochs=2,
        )

        for number, _ in enumerate(steps):
            if number == 2:
                logging.getLogger("trainer").info("mixer_lost")
        stderr.close()
        shown = read_all(screen)

    assert "epoch 1/3" in shown
    assert "loss=0.5" in shown
    assert "wait=25.0%" in shown
    assert "run_eta=00:05" in shown
    assert "\rmixer_lost\r\n" in shown
    assert "spread" not in shown
