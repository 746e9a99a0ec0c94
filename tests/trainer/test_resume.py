"""`samix train --resume`: a run that ended early goes on as if it had not."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from logs import own_logging
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from training import OPENMIXUP_FLAGS, events_of, newest_checkpoint, summary_of

from samix.mixing.artefact import load_mixer
from trainer import epochs
from trainer.checkpoint import BEST, load_checkpoint
from trainer.cli import main
from trainer.evaluate import Evaluation
from trainer.methods.online import ARTEFACT
from trainer.sample_trace import read_trace, trace_path
from trainer.state import Place, Run

EPOCHS = 3
STEPS = 3
"""Of one epoch of `data`."""
CUTMIX = ["--mixing.policy", "cutmix"]
ONLINE = ["--mixing.policy", "online"]
OPENMIXUP = [*ONLINE, *OPENMIXUP_FLAGS]
EVERY_STEP = ["--checkpoint.every-steps", "1", "--log-every", "1", "--trace-samples"]


def train(data: list[str], out: Path, *flags: str) -> int:
    page = ["--metrics.port", "0", "--metrics.linger-s", "0"]
    return main(["digits_cpu", *data, *page, "--epochs", str(EPOCHS), "--device", "cpu", "--out", str(out), *flags])


class Crash:
    """Ends a run as soon as a checkpoint of a step was written."""

    def __init__(self, epoch: int, step: int) -> None:
        self._place = (epoch, step)
        self._save = epochs.save

    def __call__(self, run: Run, place: Place) -> Path:
        path = self._save(run, place)
        if (place.epoch, place.step) == self._place:
            raise KeyboardInterrupt
        return path


def crash(monkeypatch: pytest.MonkeyPatch, data: list[str], out: Path, place: tuple[int, int], *flags: str) -> None:
    """Start a run that ends after a step of an epoch."""
    with monkeypatch.context() as patch:
        patch.setattr(epochs, "save", Crash(*place))
        assert train(data, out, *flags) == 130


def tensors(state: Any) -> Iterator[torch.Tensor]:
    """Find all tensors of a checkpoint, in their order."""
    if isinstance(state, torch.Tensor):
        yield state
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list) else []
    for part in parts:
        yield from tensors(part)


def without_times(out: Path) -> list[dict[str, Any]]:
    """Read what the log of a run holds but times."""
    told = ("seconds", "images_per_s", "wait_share")
    rows = [*events_of(out, "step"), *events_of(out, "epoch")]
    return [{name: value for name, value in row.items() if name not in told} for row in rows]


@pytest.fixture(scope="module")
def done(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    with own_logging():
        assert train(data, folder, *CUTMIX) == 0
    return folder


@pytest.mark.parametrize(
    ("flags", "place"),
    [
        (CUTMIX, (0, STEPS)),
        (CUTMIX, (1, 2)),
        ([*CUTMIX, "--accumulate", "2", "--ema-decay", "0.9", "--optimiser.clip-norm", "1"], (1, 1)),
        (ONLINE, (1, 1)),
        ([*ONLINE, "--precision", "bf16", "--online.block.dropout", "0.5"], (1, 2)),
        (OPENMIXUP, (1, 1)),
    ],
    ids=["before evaluation", "mid-epoch", "accumulated-averaged", "online", "online-bf16-dropout", "openmixup"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], place: tuple[int, int]
):
    """Ended at any step and resumed, a run ends with the same weights, losses, samples and mixer, bit for bit."""
    flags = [*flags, *EVERY_STEP]
    assert train(data, tmp_path / "whole", *flags) == 0
    crash(monkeypatch, data, tmp_path / "broken", place, *flags)

    assert train(data, tmp_path / "broken", *flags, "--resume", "yes") == 0

    whole, resumed = (
        list(tensors(load_checkpoint(newest_checkpoint(tmp_path / name)))) for name in ("whole", "broken")
    )
    assert len(whole) > 20
    assert all(torch.equal(expected, found) for expected, found in zip(whole, resumed, strict=True))
    assert without_times(tmp_path / "whole") == without_times(tmp_path / "broken")
    traces = [read_trace(trace_path(tmp_path / name, 0)) for name in ("whole", "broken")]
    assert traces[0] == traces[1]
    if "online" in flags:
        assert load_mixer(tmp_path / "whole" / ARTEFACT).version == load_mixer(tmp_path / "broken" / ARTEFACT).version


def test_sigterm_ends_a_run_behind_a_checkpoint(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A run that is asked to stop saves its state after the step, says how to go on, and ends with 128 + 15."""
    follow = epochs.follow

    def killed_at_step_2(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for number, step in enumerate(follow(*args, **kwargs), start=1):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield step

    monkeypatch.setattr(epochs, "follow", killed_at_step_2)

    status = train(data, tmp_path, *CUTMIX)

    assert status == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines()[-1] == (
        "stopped by SIGTERM after step 2 of epoch 1; go on with --resume auto"
    )
    assert (
        load_checkpoint(newest_checkpoint(tmp_path))["epoch"],
        load_checkpoint(newest_checkpoint(tmp_path))["step"],
    ) == (0, 2)


def test_a_signal_ends_the_lingering_of_a_run_that_is_done(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Asked to stop during its last evaluation, a run ends well, at once, and withdraws its page's address."""
    evaluate = epochs.evaluate_head

    def killed(*args: Any) -> Evaluation:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr(epochs, "evaluate_head", killed)

    assert train(data, tmp_path, *CUTMIX, "--epochs", "1", "--metrics.linger-s", "1e6") == 0

    assert summary_of(tmp_path)["epochs"] == 1
    assert not (tmp_path / "prometheus-targets.json").exists()


def test_weights_that_are_no_numbers_are_not_saved(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Where another rank's loss broke the weights of all, no checkpoint is left that every later start fails on."""

    def break_and_save(run: Run, place: Place) -> Path:
        if place.step == 2:
            run.method.classifier.backbone.get_parameter("conv1.weight").data[0] = float("nan")
        return save(run, place)

    save = epochs.save
    monkeypatch.setattr(epochs, "save", break_and_save)

    status = train(data, tmp_path, *CUTMIX, *EVERY_STEP)

    assert status == 2
    assert "error: backbone.conv1.weight is no longer finite, so nothing was saved" in capsys.readouterr().err
    assert newest_checkpoint(tmp_path).name == "epoch-0000-step-0000001.pt"


def test_last_checkpoints_and_the_best_are_kept(data: list[str], tmp_path: Path):
    """Of all checkpoints the last ones stay, and the one with the highest accuracy."""
    assert train(data, tmp_path, *CUTMIX, "--checkpoint.every-steps", "1", "--checkpoint.keep", "3") == 0

    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    rows = events_of(tmp_path)
    best = max(rows, key=lambda row: row["top1"])
    assert names == [BEST, *(f"epoch-0002-step-000000{step}.pt" for step in (1, 2, 3))]
    assert load_checkpoint(tmp_path / "checkpoints" / BEST)["epoch"] == best["epoch"] - 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epochs", "2"], "stands in epoch 3, beyond the last of --epochs 2; ask for more"),
        (["--epochs", "9", "--seed", "5"], "was trained with seed 0, got --seed 5"),
        (["--epochs", "9", "--model.backbone.channels", "8", "16", "32", "64"], "is of another model"),
        (["--epochs", "9", *ONLINE], "is of another model (it holds no mixer in training)"),
        (["--epochs", "9", "--precision", "fp16"], "in fp16 and the other does not"),
        (["--epochs", "9", "--ema-decay", "0.9"], "was trained without an average of the weights"),
        (["--epochs", "9", "--data.global-batch", "32"], "was trained in another order of samples"),
        (["--epochs", "9", "--out", "nowhere"], "holds no checkpoint to go on from"),
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
    """Fewer epochs, another seed, model, method, order or precision and a missing checkpoint are refused."""
    flags = [str(tmp_path / flag) if flag == "nowhere" else flag for flag in flags]

    status = train(data, done, *CUTMIX, "--resume", "yes", *flags)

    assert status == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_other_settings_are_told(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A run that goes on with other settings than it had says which, with both values; else it says nothing."""
    crash(monkeypatch, data, tmp_path, (1, 1), *CUTMIX, *EVERY_STEP)
    told = []

    for flags in ([], ["--optimiser.lr", "0.2"]):
        assert train(data, tmp_path, *CUTMIX, *EVERY_STEP, "--resume", "yes", *flags) == 0
        lines = capsys.readouterr().err.splitlines()
        told.append(
            [
                line.partition(" changed=")[2].removesuffix(" rank=0")
                for line in lines
                if " resumed_with_other_settings " in line
            ]
        )

    assert told == [[], ['"optimiser.lr 0.1 -> 0.2"']]


def test_checkpoints_are_not_overwritten_unasked(data: list[str], done: Path, capsys: pytest.CaptureFixture[str]):
    """A new run in the folder of an earlier one is refused; its checkpoints stay."""
    before = sorted((done / "checkpoints").iterdir())

    status = train(data, done, *CUTMIX)

    assert status == 2
    assert "go on with it by --resume yes, start anew by --overwrite" in capsys.readouterr().err.splitlines()[-1]
    assert sorted((done / "checkpoints").iterdir()) == before


def test_overwrite_starts_anew(data: list[str], tmp_path: Path):
    """With --overwrite nothing of the earlier run stays: neither checkpoints nor log."""
    assert train(data, tmp_path, *CUTMIX) == 0

    assert train(data, tmp_path, *CUTMIX, "--epochs", "1", "--overwrite") == 0

    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        BEST,
        newest_checkpoint(tmp_path).name,
    ]
    assert load_checkpoint(newest_checkpoint(tmp_path))["epoch"] == 0
    assert len(events_of(tmp_path)) == 1


def test_no_row_of_an_overwritten_run_is_resumed(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run that is killed before its first row and resumed has no row of the run it overwrote."""
    assert train(data, tmp_path, *CUTMIX, "--log-every", "1") == 0
    crash(monkeypatch, data, tmp_path, (0, 2), *CUTMIX, "--checkpoint.every-steps", "1", "--overwrite")

    assert train(data, tmp_path, *CUTMIX, "--resume", "yes") == 0

    assert events_of(tmp_path, "step") == []
    assert [row["epoch"] for row in events_of(tmp_path)] == [1, 2, 3]


def test_auto_starts_where_there_is_nothing_and_goes_on_where_there_is(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`--resume auto` is one command for a run's start and for each restart."""
    auto = [*CUTMIX, "--resume", "auto", *EVERY_STEP]
    crash(monkeypatch, data, tmp_path, (1, 2), *auto)

    assert train(data, tmp_path, *auto) == 0

    assert [(row["epoch"], row["step"]) for row in events_of(tmp_path, "step")] == [
        (epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(1, STEPS + 1)
    ]


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Offer the store of a torchrun that outlives its ranks."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    offered = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
    for name, value in offered.items():
        monkeypatch.setenv(name, str(value))
    yield
    del store


@pytest.mark.usefixtures("agent")
@pytest.mark.parametrize("flags", [[], ["--overwrite"]], ids=["new", "overwrite"])
@pytest.mark.parametrize("count", ["0", "1"], ids=["lost elsewhere", "lost here"])
def test_ranks_that_torchrun_restarts_go_on(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], count: str
):
    """Started again by torchrun, whichever machine lost a rank, a run goes on from its checkpoint without a flag."""
    crash(monkeypatch, data, tmp_path, (1, 1), *CUTMIX, *EVERY_STEP, *flags)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)

    assert train(data, tmp_path, *CUTMIX, *EVERY_STEP, *flags) == 0

    assert summary_of(tmp_path)["steps"] == EPOCHS * STEPS - (STEPS + 1)


@pytest.mark.usefixtures("agent")
def test_a_refused_folder_stays_refused(data: list[str], done: Path, monkeypatch: pytest.MonkeyPatch):
    """torchrun starts ranks that refused a folder again, and they refuse it again: its run is not theirs."""
    assert train(data, done, *CUTMIX, "--epochs", "9") == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    assert train(data, done, *CUTMIX, "--epochs", "9") == 2


def test_restarts_without_a_store_are_counted(data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where torchrun offers no store that outlives the ranks, its count of restarts tells that the run is theirs."""
    crash(monkeypatch, data, tmp_path, (1, 1), *CUTMIX, *EVERY_STEP)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")

    assert train(data, tmp_path, *CUTMIX, *EVERY_STEP) == 0

    assert summary_of(tmp_path)["steps"] == EPOCHS * STEPS - (STEPS + 1)


@pytest.mark.parametrize("policy", [CUTMIX, ONLINE], ids=["cutmix", "online"])
def test_a_run_that_ended_before_its_summary_gets_one(data: list[str], tmp_path: Path, policy: list[str]):
    """Resumed behind its last step, a run trains no further and leaves what it would have left."""
    assert train(data, tmp_path, *policy) == 0
    expected, trained = summary_of(tmp_path), list(tensors(load_checkpoint(newest_checkpoint(tmp_path))))
    (tmp_path / "summary.json").unlink()

    assert train(data, tmp_path, *policy, "--resume", "yes") == 0

    resumed = summary_of(tmp_path)
    for name in ("epochs", "top1", "best_top1", "top1_of_heads", "first_loss", "last_loss", "lam_error", "spread"):
        assert resumed.get(name) == expected.get(name)
    assert resumed["seconds"] >= expected["seconds"] - 1
    assert all(map(torch.equal, trained, tensors(load_checkpoint(newest_checkpoint(tmp_path)))))


def test_an_online_run_is_not_resumed_without_its_mixer(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Going on with another policy would throw the mixer away: it is refused by the name of what would be lost."""
    assert train(data, tmp_path, *ONLINE, "--epochs", "1") == 0

    status = train(data, tmp_path, *CUTMIX, "--resume", "yes")

    assert status == 2
    assert "is of another model (it holds online, which" in capsys.readouterr().err.splitlines()[-1]
