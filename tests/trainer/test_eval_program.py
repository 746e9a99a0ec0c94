"""`samix train RECIPE --eval CHECKPOINT`: what a finished run is worth."""

import csv
import json
from pathlib import Path

import pytest
import torch
from logs import own_logging
from matplotlib.image import imread
from training import NUM_CLASSES, newest_checkpoint, summary_of

from trainer.cli import main

CUTMIX = ["--mixing.policy", "cutmix"]


def train(data: list[str], out: Path, *flags: str) -> int:
    page = ["--metrics.port", "0", "--metrics.linger-s", "0"]
    return main(["digits_cpu", *data, *page, "--device", "cpu", "--out", str(out), *flags])


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that averaged its weights."""
    out = tmp_path_factory.mktemp("runs") / "averaged"
    with own_logging():
        assert train(data, out, *CUTMIX, "--epochs", "2", "--ema-decay", "0.5") == 0
    return out


def test_tells_what_the_run_told(data: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The figures of a checkpoint are those of its run's summary, also as a table of classes and a picture."""
    status = train(data, tmp_path, "--eval", str(newest_checkpoint(run)))

    assert status == 0
    summary, found = summary_of(run), json.loads((tmp_path / "evaluation.json").read_text())
    for name in ("top1", "top5", "cross_entropy", "calibration_error"):
        assert found[name] == pytest.approx(summary[name], rel=1e-6)
    rows = list(csv.DictReader((tmp_path / "per_class.csv").read_text().splitlines()))
    assert sum(int(row["samples"]) for row in rows) == found["samples"] == 30
    assert len(rows) == NUM_CLASSES
    assert imread(tmp_path / "evaluation.png").std() > 0.01
    assert f"{100 * found['top1']:.2f}" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"evaluation.json", "evaluation.png", "per_class.csv"}


def test_evaluates_the_averaged_weights(run: Path):
    """A run with an average evaluates it: its summary is not that of the weights that were trained."""
    state = torch.load(newest_checkpoint(run), weights_only=True)

    assert state["averaged"].keys() == state["model"].keys()
    assert not all(torch.equal(state["averaged"][name], value) for name, value in state["model"].items())


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--eval", "gone.pt"], "cannot read checkpoint gone.pt (No such file or directory); check the path"),
        (["--model.backbone.channels", "8", "16", "32", "64"], "is of another model (Error(s) in loading state_dict"),
        (
            ["--resume", "yes"],
            "--eval trains nothing, so there is nothing to go on with or start; leave out --resume yes",
        ),
        (["--overwrite"], "--eval trains nothing, so there is nothing to go on with or start; leave out --overwrite"),
    ],
)
def test_refuses(
    data: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
):
    """A checkpoint that is not there or of another model, and flags that contradict each other, are refused."""
    status = train(data, tmp_path, "--eval", str(newest_checkpoint(run)), *flags)

    assert status == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
