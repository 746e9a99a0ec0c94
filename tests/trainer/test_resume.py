"""`samix train --resume`: a run that ended early goes on as if it had not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from logs import own_logging
from training import OPENMIXUP_FLAGS, events_of, summary_of

from samix.mixing.artefact import load_mixer
from trainer import run
from trainer.checkpoint import load_checkpoint
from trainer.cli import main
from trainer.methods.online import ARTEFACT
from trainer.state import Run

EPOCHS = 3
CUTMIX = ["--mixing.policy", "cutmix"]
ONLINE = ["--mixing.policy", "online"]
OPENMIXUP = [*ONLINE, *OPENMIXUP_FLAGS]


def train(data: list[str], out: Path, *flags: str) -> int:
    page = ["--metrics.port", "0", "--metrics.linger-s", "0"]
    return main(["digits_cpu", *data, *page, "--epochs", str(EPOCHS), "--device", "cpu", "--out", str(out), *flags])


def dies_after_one_epoch(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    save = run.save

    def save_and_die(parts: Run, epoch: int) -> None:
        save(parts, epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "save", save_and_die)
    return lambda: monkeypatch.setattr(run, "save", save)


def tensors(state: Any) -> list[torch.Tensor]:
    """Find all tensors of a checkpoint, in their order."""
    if isinstance(state, torch.Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.fixture(scope="module")
def done(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    with own_logging():
        assert train(data, folder, *CUTMIX) == 0
    return folder


@pytest.mark.parametrize(
    "flags",
    [CUTMIX, ONLINE, [*ONLINE, "--precision", "bf16", "--online.block.dropout", "0.5"], OPENMIXUP],
    ids=["cutmix", "online", "online-bf16-dropout", "openmixup"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
):
    """Killed after an epoch and resumed, a run ends with the same weights, losses and mixer, bit for bit."""
    assert train(data, tmp_path / "whole", *flags) == 0
    recover = dies_after_one_epoch(monkeypatch)
    assert train(data, tmp_path / "broken", *flags) == 130
    recover()

    assert train(data, tmp_path / "broken", *flags, "--resume") == 0

    whole, resumed = (tensors(load_checkpoint(tmp_path / name / "checkpoint.pt")) for name in ("whole", "broken"))
    assert len(whole) > 20
    assert all(torch.equal(expected, found) for expected, found in zip(whole, resumed, strict=True))
    wanted = ("epoch", "loss", "top1", "lam_error", "spread")
    logs = [[[row.get(name) for name in wanted] for row in events_of(tmp_path / run)] for run in ("whole", "broken")]
    assert logs[0] == logs[1]
    if flags is not CUTMIX:
        assert load_mixer(tmp_path / "whole" / ARTEFACT).version == load_mixer(tmp_path / "broken" / ARTEFACT).version


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epochs", "2"], "has 3 epochs behind it, more than --epochs 2; ask for more"),
        (["--epochs", "9", "--seed", "5"], "was trained with seed 0, got --seed 5"),
        (["--epochs", "9", "--model.backbone.channels", "8", "16", "32", "64"], "is of another model"),
        (["--epochs", "9", *ONLINE], "is of another model (it holds no mixer in training)"),
        (["--epochs", "9", "--out", "nowhere"], "cannot read checkpoint"),
    ],
)
def test_what_cannot_be_resumed(
    data: list[str],
    done: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    sentence: str,
):
    """Fewer epochs, another seed, model or method and a missing checkpoint are refused with a sentence."""
    flags = [str(tmp_path / flag) if flag == "nowhere" else flag for flag in flags]

    status = train(data, done, *CUTMIX, "--resume", *flags)

    assert status == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("policy", [CUTMIX, ONLINE], ids=["cutmix", "online"])
def test_a_run_that_ended_before_its_summary_gets_one(data: list[str], tmp_path: Path, policy: list[str]):
    """Resumed behind its last epoch, a run trains no further and leaves what it would have left."""
    assert train(data, tmp_path, *policy) == 0
    expected, trained = summary_of(tmp_path), tensors(load_checkpoint(tmp_path / "checkpoint.pt"))
    (tmp_path / "summary.json").unlink()

    assert train(data, tmp_path, *policy, "--resume") == 0

    resumed = summary_of(tmp_path)
    for name in ("epochs", "top1", "best_top1", "top1_of_heads", "first_loss", "last_loss", "lam_error", "spread"):
        assert resumed.get(name) == expected.get(name)
    assert resumed["seconds"] >= expected["seconds"] - 1
    assert all(map(torch.equal, trained, tensors(load_checkpoint(tmp_path / "checkpoint.pt"))))


def test_an_online_run_is_not_resumed_without_its_mixer(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Going on with another policy would throw the mixer away: it is refused by the name of what would be lost."""
    assert train(data, tmp_path, *ONLINE, "--epochs", "1") == 0

    status = train(data, tmp_path, *CUTMIX, "--resume")

    assert status == 2
    assert "is of another model (it holds online, which" in capsys.readouterr().err.splitlines()[-1]
