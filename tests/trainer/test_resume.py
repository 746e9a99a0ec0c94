"""`samix train --resume`: a run that ended early goes on as if it had not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer import run
from trainer.checkpoint import load_checkpoint
from trainer.cli import main

EPOCHS = 3


def train(data: list[str], out: Path, *flags: str) -> int:
    page = ["--metrics.port", "0", "--metrics.linger-s", "0"]
    mixing = ["--mixing.policy", "cutmix", "--epochs", str(EPOCHS), "--device", "cpu"]
    return main(["digits_cpu", *data, *page, *mixing, "--out", str(out), *flags])


def dies_after_one_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    save = run._save

    def save_and_die(parts: run._Run, epoch: int) -> None:
        save(parts, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_save", save_and_die)
    return lambda: monkeypatch.setattr(run, "_save", save)


def test_a_resumed_run_ends_like_an_uninterrupted_one(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Killed after an epoch and resumed, a run ends with the same weights, losses and log."""
    assert train(data, tmp_path / "whole") == 0
    recover = dies_after_one_epoch(monkeypatch)
    assert train(data, tmp_path / "broken") == 130
    recover()

    assert train(data, tmp_path / "broken", "--resume") == 0

    whole, resumed = (load_checkpoint(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "broken"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "broken")]
    expected, found = ([(row["epoch"], row["loss"], row["top1"]) for row in map(json.loads, log)] for log in logs)
    assert found == expected


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "nothing to resume"),
        (["--epochs", "9", "--seed", "5"], "seed 0"),
        (["--epochs", "9", "--model.backbone.channels", "8", "16", "32", "64"], "another model"),
        (["--out", "nowhere"], "cannot read checkpoint"),
    ],
)
def test_what_cannot_be_resumed(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str
):
    """A finished run, another seed, another model and a missing checkpoint are refused with a sentence."""
    assert train(data, tmp_path / "done") == 0
    flags = [str(tmp_path / flag) if flag == "nowhere" else flag for flag in flags]

    status = train(data, tmp_path / "done", "--resume", *flags)

    assert status == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]
