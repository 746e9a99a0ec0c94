"""`python -m benchmarks.accuracy`: runs every way once, keeps what is done, and tells what came out."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from training import summary_of, write_pictures

from benchmarks.accuracy import WAYS, main
from benchmarks.accuracy_report import accuracy_table, draw_accuracies


@pytest.fixture(autouse=True)
def usual_signals() -> Iterator[None]:
    """Put back what the program does to the signals of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_of(seed: int, top1: float, **mixer: float) -> dict[str, Any]:
    return {"seed": seed, "top1": top1, "seconds": 120.0, **mixer}


REPORT: dict[str, Any] = {
    "settings": {"jobs": 2},
    "ways": [
        {
            "title": "SAMix online",
            "runs": [run_of(0, 0.5, lam_error=0.051, spread=0.123), run_of(3, 0.6, lam_error=0.062, spread=0.101)],
        },
        {"title": "CutMix", "runs": [run_of(0, 0.4), run_of(3, 0.45)]},
    ],
}


def flags(folder: Path, *further: str) -> list[str]:
    """Name shards that need not exist, one seed and an output folder."""
    return ["--train", "train.tar", "--val", "val.tar", "--seeds", "0", "--out", str(folder), *further]


def accuracies_of(report: dict[str, Any]) -> list[float]:
    return [way["runs"][0]["top1"] for way in report["ways"]]


def leave_finished_runs(folder: Path) -> None:
    """Write the summaries of all runs of seed 0, each way a percent better than the one before."""
    for number, way in enumerate(WAYS):
        run = folder / "seed0" / way.name
        run.mkdir(parents=True)
        (run / "summary.json").write_text(json.dumps({"top1": 0.2 + number / 100, "seconds": 60.0, "epochs": 1}))


def ink(path: Path) -> float:
    """Share of a picture that is coloured, as the learned mixers are: neither white nor grey."""
    pixels = imread(path)[:, :, :3]
    return float((pixels.max(axis=2) - pixels.min(axis=2) > 0.3).mean())


def test_the_table_has_a_line_for_each_way():
    """Accuracies in percent by seed, their mean and standard deviation, minutes, and how good the mixers' masks are."""
    head, online, cutmix, _, *notes = accuracy_table(REPORT).splitlines()

    assert head.split() == ["seed", "0", "seed", "3", "mean", "spread", "minutes"]
    assert online.split() == ["SAMix", "online", "50.00", "60.00", "55.00", "7.07", "2.0"]
    assert cutmix.split() == ["CutMix", "40.00", "45.00", "42.50", "3.54", "2.0"]
    assert notes == [
        "seed 0: 4 minutes of runs, 2 with 2 at a time",
        "seed 3: 4 minutes of runs, 2 with 2 at a time",
        "mixer of SAMix online, seed 0: mean |mean(mask) - lam| 0.051, spatial std 0.123",
        "mixer of SAMix online, seed 3: mean |mean(mask) - lam| 0.062, spatial std 0.101",
    ]


def test_one_seed_has_no_spread():
    """A table of one seed is a table, without a spread to speak of."""
    report = REPORT | {"ways": [{"title": "CutMix", "runs": [run_of(0, 0.4)]}]}

    assert accuracy_table(report).splitlines()[1].split() == ["CutMix", "40.00", "40.00", "0.00", "2.0"]


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_picture_shows_something(tmp_path: Path, seeds: int):
    """Strokes and dots are there, of one seed too."""
    report = {"ways": [way | {"runs": way["runs"][:seeds]} for way in REPORT["ways"]]}

    draw_accuracies(tmp_path / "accuracy.png", report)

    assert ink(tmp_path / "accuracy.png") > 2e-4


def test_the_frozen_mixer_is_the_one_trained_online():
    """Each way that freezes a mixer takes it from the way that trains one on mixed images alone."""
    sources = {way.name: way.mixer_of for way in WAYS if way.mixer_of}

    assert sources == {"frozen": "online", "frozen-clean": "online"}
    assert len({way.name for way in WAYS}) == len({way.title for way in WAYS}) == 8


def test_finished_runs_are_only_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Where every run has left its summary nothing is trained: table, figures and picture are made of what is there."""
    leave_finished_runs(tmp_path)

    status = main(flags(tmp_path))

    report = json.loads((tmp_path / "table.json").read_text())
    output = capsys.readouterr().out
    assert not status
    assert "8 of 8 runs are done" in output
    assert accuracy_table(report) in output
    assert [way["name"] for way in report["ways"]] == [way.name for way in WAYS]
    assert accuracies_of(report) == pytest.approx([0.2 + n / 100 for n in range(8)])
    assert report["settings"]["seeds"] == [0]
    assert f"commit {report['versions']['commit']}, " in output.splitlines()[0]
    assert ink(tmp_path / "accuracy.png") > 2e-4


@pytest.mark.parametrize("is_finished", [False, True])
def test_other_settings_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], is_finished: bool):
    """Runs of other settings are neither mixed with new ones nor reported as theirs, and nothing is started."""
    if is_finished:
        leave_finished_runs(tmp_path)
    run = tmp_path / "seed0" / WAYS[-1].name
    run.mkdir(parents=True, exist_ok=True)
    (run / "flags.json").write_text('["digits_cpu"]')

    status = main(flags(tmp_path))

    assert status == 2
    assert capsys.readouterr().err == (
        f"error: {run} holds a run with other settings, see flags.json; choose another --out\n"
    )
    assert not (tmp_path / "table.json").exists()
    assert not list(tmp_path.rglob("run.log"))


@pytest.mark.parametrize(
    ("further", "sentence"),
    [
        (["--seeds", "1", "1"], "seeds must be different numbers of at least 0, got (1, 1)"),
        (["--seeds", "-1"], "got (-1,)"),
        (["--jobs", "0"], "jobs must lie in 1..256, got 0"),
    ],
)
def test_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], further: list[str], sentence: str):
    """Flags out of bounds are refused with status 2, before anything is written."""
    assert main(flags(tmp_path, *further)) == 2

    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_ends_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The sentence of the run that failed is passed on, and no table is written."""
    status = main(flags(tmp_path, "--jobs", "1"))

    errors = capsys.readouterr().err
    assert status == 1
    assert "no shard matches 'train.tar'" in errors
    assert not (tmp_path / "table.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_way_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A table of real runs, two at a time; started again it trains nothing but what is missing."""
    train, val = write_pictures(tmp_path / "train.tar", 200), write_pictures(tmp_path / "val.tar", 30)
    out = tmp_path / "runs"
    argv = ["--train", train, "--val", val, "--seeds", "0", "--out", str(out), "--recipe", "digits_cpu"]
    argv.append("--flags=--epochs=1")

    assert not main(argv)

    output = capsys.readouterr().out
    report = json.loads((out / "table.json").read_text())
    assert output.count(" to go\n") == 8
    assert accuracy_table(report) in output
    assert ink(out / "accuracy.png") > 2e-4
    for way in WAYS:
        summary = summary_of(out / "seed0" / way.name)
        assert summary["epochs"] == 1
        assert summary["policy"] == way.flags[1]
    frozen = json.loads((out / "seed0" / "frozen" / "config.json").read_text())
    assert frozen["mixing"]["artefact"] == summary_of(out / "seed0" / "online")["mixer"]

    lost = out / "seed0" / "none"
    (lost / "summary.json").unlink()
    shutil.rmtree(lost / "checkpoints")
    assert not main(argv)

    output = capsys.readouterr().out
    again = json.loads((out / "table.json").read_text())
    assert "7 of 8 runs are done" in output
    assert output.count(" to go\n") == 1
    for before, after in zip(report["ways"], again["ways"], strict=True):
        assert after == before or after["name"] == "none"
    assert accuracies_of(again) == accuracies_of(report)
