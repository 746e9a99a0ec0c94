"""`samix train` in one process: what a run leaves, and what it refuses."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from serving import serve, tiny_mixer
from training import (
    NUM_CLASSES,
    images_mixed,
    newest_checkpoint,
    page_value,
    picture,
    summary_of,
    write_pictures,
    write_shard,
)

from mixer_server.app import MixerServer
from trainer.checkpoint import load_checkpoint
from trainer.cli import main
from trainer.recipes import RECIPES

QUICK = ["--epochs", "1", "--device", "cpu", "--metrics.linger-s", "0"]
NO_MIXER = ["--mixing.policy", "none"]


def train(*flags: str, port: str = "0") -> int:
    return main(["digits_cpu", *QUICK, "--metrics.port", port, *flags])


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    status = train(*flags)
    lines = capsys.readouterr().err.splitlines()
    assert status == 2, lines
    assert "Traceback" not in "".join(lines)
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def test_leaves_everything_a_person_needs(data: list[str], server: MixerServer, tmp_path: Path):
    """A run on a mixer server leaves summary, log, curves, checkpoint, config and metrics, and they agree."""
    before, endpoint = images_mixed(server), server.addresses["grpc"]
    flags = ["--mixing.endpoint", endpoint, "--mixing.deadline-s", "60", "--out", str(tmp_path)]

    status = train(*data, *flags, "--epochs", "2", "--log-every", "2")

    assert status == 0
    summary = summary_of(tmp_path)
    expected = {"policy": "remote", "world_size": 1, "steps": 6, "images": 384, "fallbacks": 0, "evaluated": 30}
    assert summary.items() >= expected.items()
    assert images_mixed(server) - before == 384
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["step", "epoch"] * 2
    assert events[-1]["top1"] == pytest.approx(summary["top1"], abs=1e-4)
    state = load_checkpoint(newest_checkpoint(tmp_path))
    assert (state["epoch"], state["step"]) == (1, 3)
    assert json.loads((tmp_path / "config.json").read_text())["mixing"]["endpoint"] == endpoint
    assert page_value((tmp_path / "metrics-rank0.txt").read_text(), "trainer_images_total") == 384
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_is_repeated_exactly(data: list[str], artefact: Path, tmp_path: Path):
    """The same seed gives the same losses and accuracy, another seed gives others."""
    summaries = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        flags = ["--mixing.policy", "local", "--mixing.artefact", str(artefact), "--out", str(tmp_path / name)]
        assert train(*data, *flags, "--seed", seed) == 0
        summaries.append(summary_of(tmp_path / name))

    first, second, other = ((summary["last_loss"], summary["top1"]) for summary in summaries)
    assert first == second != other


def test_learns(data: list[str], tmp_path: Path):
    """Pictures that tell their class by their grey are learnt within a few epochs."""
    status = train(*data, *NO_MIXER, "--out", str(tmp_path), "--epochs", "12", "--optimiser.lr", "0.05")

    assert status == 0
    assert summary_of(tmp_path)["best_top1"] > 0.5


def test_a_taken_metrics_port_stops_no_run(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A metrics port that is taken becomes a free one, with a warning that names both."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status = train(*data, *NO_MIXER, "--out", str(tmp_path), port=port)

    log = capsys.readouterr().err
    assert status == 0
    assert f"metrics_port_taken wanted={port} got=" in log


def test_a_spent_budget_is_status_1(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run that may not fall back any more ends with 1, the cause and the cure, and no summary."""
    with serve(tiny_mixer()) as mortal:
        flags = ["--mixing.endpoint", mortal.addresses["grpc"], "--mixing.failure-budget", "0"]
        mortal.batcher.close()
        status = train(*data, *flags, "--mixing.deadline-s", "0.5", "--out", str(tmp_path))

    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 1
    assert len(errors) == 1
    assert errors[0].startswith("error: a rank may mix 0 batches of an epoch by its fallback and needs one more (")
    assert errors[0].endswith("or raise --mixing.failure-budget")
    assert not (tmp_path / "summary.json").exists()


def test_a_loss_that_is_no_number(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A diverged run ends with the loss, the learning rate and the cure."""
    sentence = refusal(capsys, *data, *NO_MIXER, "--out", str(tmp_path), "--optimiser.lr", "1e30")

    assert sentence.endswith("; lower --optimiser.lr")
    assert "e+" in sentence


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--data.train", "gone-*.tar"], "no shard matches 'gone-*.tar'"),
        (["--data.val", "gone.tar"], "no shard matches 'gone.tar'"),
        (["--data.num-classes", "7"], "but there are 7 classes (0 to 6); raise num-classes"),
        (["--data.global-batch", "512"], "200 samples do not fill a global batch of 512"),
        (["--data.image-size", "0"], "image_size must be at least 1, got 0"),
        (["--optimiser.momentum", "2"], "optimiser.momentum must be at least 0 and below 1, got 2.0"),
        (["--metrics.port", "-1"], "metrics.port must lie in 0..65000, got -1"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--optimiser.warmup-epochs", "25"], "a warm-up of 25 epochs leaves nothing of 1 to train at its rate"),
        (["--seed", "-3"], "seed must not be negative, got -3"),
        (["--model.backbone.name", "resnet1"], "timm knows no backbone 'resnet1'"),
        (["--objective.clean-weight", "-1"], "clean_weight must be a number of at least 0, got -1.0"),
        (["--mixing.policy", "online", "--online.stage", "4"], "stage must be 0..3 for this backbone, got 4"),
        (
            ["--mixing.policy", "remote", "--mixing.endpoint", "127.0.0.1:1", "--mixing.startup-timeout-s", "1"],
            "no mixer was ready at 127.0.0.1:1 within 1 s",
        ),
        (["--mixing.policy", "local", "--mixing.artefact", "gone.safetensors"], "there is no mixer at gone.safe"),
    ],
)
def test_refuses(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str):
    """What cannot be trained is one sentence with the value and the cure, exit status 2, and no summary."""
    assert sentence in refusal(capsys, *data, *NO_MIXER, "--out", str(tmp_path / "run"), *flags)

    assert not (tmp_path / "run" / "summary.json").exists()


def test_unknown_recipe(capsys: pytest.CaptureFixture[str]):
    """A recipe nobody knows is refused with those there are."""
    status = main(["imagenet"])

    assert status == 2
    known = ", ".join(RECIPES)
    assert capsys.readouterr().err == (
        f"error: no recipe is called 'imagenet'; `samix train RECIPE [--flags]` knows {known}\n"
    )


def test_image_size_outside_the_mixers_limits(
    data: list[str], server: MixerServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Images the server's mixer does not take are refused before the first step, with its limits."""
    endpoint = ["--mixing.endpoint", server.addresses["grpc"], "--out", str(tmp_path)]

    sentence = refusal(capsys, *data, *endpoint, "--data.image-size", "4")

    assert "mixer tiny takes images of 8 to 1024 pixels, data.image_size is 4" in sentence


def test_damaged_artefact(data: list[str], artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A mixer file that was changed is refused by its checksum."""
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(artefact.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)

    flags = ["--mixing.policy", "local", "--mixing.artefact", str(damaged), "--out", str(tmp_path / "run")]

    assert "have checksum" in refusal(capsys, *data, *flags)


def test_truncated_shard(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A shard that was cut is refused by its name before the first step."""
    shard = Path(write_pictures(tmp_path / "cut.tar", 100))
    shard.write_bytes(shard.read_bytes()[:50_000])

    sentence = refusal(capsys, *data, *NO_MIXER, "--data.train", str(shard), "--out", str(tmp_path / "run"))

    assert str(shard) in sentence
    assert "fetch or write it again" in sentence


def with_one_bad_picture(folder: Path) -> str:
    samples = {number: (picture(number), number % NUM_CLASSES) for number in range(64)}
    samples[40] = (b"not a picture", 0)
    return write_shard(folder / "spoilt.tar", samples)


def test_undecodable_picture(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A picture that cannot be decoded is refused by shard and key."""
    shard = with_one_bad_picture(tmp_path)

    sentence = refusal(capsys, *data, *NO_MIXER, "--data.train", shard, "--out", str(tmp_path / "run"))

    assert f"sample 0040 of {shard} is no JPEG, PNG or WebP image" in sentence


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_out_that_is_no_folder(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str):
    """An output folder that cannot be made is refused before anything is loaded."""
    (tmp_path / "file").write_text("in the way")

    sentence = refusal(capsys, *data, *NO_MIXER, "--out", str(tmp_path / out))

    assert sentence.startswith(f"error: cannot write to the folder {tmp_path / out} (")
    assert sentence.endswith("; choose another --out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_permission(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """An output folder that may not be written to is refused before anything is loaded."""
    out = tmp_path / "run"
    out.mkdir(mode=0o500)

    assert "(Permission denied)" in refusal(capsys, *data, *NO_MIXER, "--out", str(out))


def test_summary_of_the_run_before_is_gone(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run that fails in its first second leaves no summary of another run behind."""
    (tmp_path / "summary.json").write_text("{}")

    refusal(capsys, *data, *NO_MIXER, "--data.train", "gone.tar", "--out", str(tmp_path))

    assert not (tmp_path / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_refusal_of_a_real_process(data: list[str], tmp_path: Path, workers: str):
    """`python -m trainer` ends with 2 and one sentence on stderr, also if a worker process met the bad picture."""
    flags = ["--data.train", with_one_bad_picture(tmp_path), "--data.num-workers", workers, "--out", str(tmp_path)]
    command = [sys.executable, "-m", "trainer", "digits_cpu", *QUICK, "--metrics.port", "0", *data, *NO_MIXER, *flags]

    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: ")] == ended.stderr.splitlines()[-1:]
    assert ended.stdout == ""
