"""Two ranks in processes of their own, and what may go wrong around them: no hang, no lost step, no traceback."""

import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
from faults import (
    BOTH_LOST,
    Ended,
    Fault,
    When,
    aborting,
    empty,
    erring_server,
    fill_disk,
    garbage,
    kill_run,
    launcher,
    overloaded,
    remains_of,
    run_ranks,
    server_process,
    small_disk,
)
from training import events_of, newest_checkpoint, summary_of, write_pictures

from trainer.checkpoint import load_checkpoint

LIMIT_S = 120.0
BATCH = 32
"""Of both ranks."""
STEPS = 32
"""Of an epoch."""
IN_MID_EPOCH = " step epoch=2 step=10 "
"""In the log of rank 0, the line of a step."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * LIMIT_S)]


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    """Flags that name shards of STEPS steps, in several files."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(4):
        write_pictures(folder / f"train-{number}.tar", STEPS * BATCH // 4)
    val = write_pictures(folder / "val.tar", 30)
    return ["--data.train", f"{folder}/train-{{0..3}}.tar", "--data.val", val, "--data.global-batch", str(BATCH)]


def flags_of(shards: list[str], out: Path, epochs: int, *further: str) -> list[str]:
    return [*shards, "--out", str(out), "--epochs", str(epochs), "--log-every", "1", *further]


def on_server(address: str) -> list[str]:
    return ["--mixing.endpoint", address, "--mixing.failure-budget", "100000"]


CUTMIX = ["--mixing.policy", "cutmix"]


def assert_went_through(ended: Ended, out: Path, epochs: int) -> list[dict[str, Any]]:
    """Both ranks made all steps and ended well; returns what each of them counted."""
    assert ended.status == 0, ended.logs
    assert ended.errors == [[], []]
    assert not any("Traceback" in log for log in ended.logs)
    ranks = summary_of(out)["ranks"]
    assert [rank["steps"] for rank in ranks] == [epochs * STEPS] * 2
    assert [rank["images"] for rank in ranks] == [epochs * STEPS * BATCH // 2] * 2
    assert sum(epoch["fallbacks"] for epoch in events_of(out)) == sum(rank["fallbacks"] for rank in ranks)
    return ranks


def assert_gave_up(ended: Ended, sentence: str, *, ranks: int = 2) -> None:
    """Torchrun failed, and each rank that could said why in its last line; one of them in this sentence."""
    assert ended.status != 0
    assert not any("Traceback" in log for log in ended.logs), ended.logs
    assert sorted(len(errors) for errors in ended.errors)[-ranks:] == [1] * ranks, ended.logs
    assert any(sentence in error for errors in ended.errors for error in errors), ended.errors
    for log, errors in zip(ended.logs, ended.errors, strict=True):
        assert log.splitlines()[-1:] == errors or not errors


def test_a_killed_server(shards: list[str], artefact: Path, tmp_path: Path):
    """A server killed with -9 for good costs fallback batches, and no step."""
    epochs = 6
    with server_process(artefact, tmp_path) as server:
        flags = flags_of(shards, tmp_path / "run", epochs, *on_server(server.grpc))
        ended = run_ranks(flags, tmp_path / "logs", When(IN_MID_EPOCH, server.kill), limit_s=LIMIT_S)

    ranks = assert_went_through(ended, tmp_path / "run", epochs)
    assert all((epochs - 2) * STEPS < rank["fallbacks"] < (epochs - 1) * STEPS for rank in ranks)
    assert ended.count("mixer_lost") == [1, 1]
    assert remains_of(tmp_path / "logs") == {}


def test_a_killed_server_and_a_small_budget(shards: list[str], artefact: Path, tmp_path: Path):
    """A server killed with -9 ends the run in one sentence where only few batches may fall back."""
    with server_process(artefact, tmp_path) as server:
        budget = ["--mixing.endpoint", server.grpc, "--mixing.failure-budget", "5"]
        flags = flags_of(shards, tmp_path / "run", 100, *budget)
        ended = run_ranks(flags, tmp_path / "logs", When(IN_MID_EPOCH, server.kill), limit_s=LIMIT_S)

    assert_gave_up(ended, "may mix 5 batches of an epoch by its fallback and needs one more")
    assert remains_of(tmp_path / "logs") == {}


def test_a_stopped_server(shards: list[str], artefact: Path, tmp_path: Path):
    """A server that does nothing for 30 s and then goes on costs fallback batches, and is used again."""
    epochs = 10
    with server_process(artefact, tmp_path) as server:
        # Most of the 30 s pass waiting for answers, so that a quick machine has steps left to do behind them.
        patience = ["--mixing.deadline-s", "10"]
        flags = flags_of(shards, tmp_path / "run", epochs, *on_server(server.grpc), *patience)
        hold = When(IN_MID_EPOCH, lambda: server.brake.hold(30))
        ended = run_ranks(flags, tmp_path / "logs", hold, limit_s=LIMIT_S)
        mixed = server.images_mixed()

    ranks = assert_went_through(ended, tmp_path / "run", epochs)
    assert all(rank["fallbacks"] > 0 for rank in ranks)
    assert ended.count("mixer_back") == [1, 1]
    # The server mixes what waited while it was stopped too, though nobody wants it any longer.
    assert mixed >= epochs * STEPS * BATCH - sum(rank["fallbacks"] for rank in ranks) * BATCH // 2
    assert remains_of(tmp_path / "logs") == {}


def test_a_slow_server(shards: list[str], artefact: Path, tmp_path: Path):
    """A server at a tenth of its speed slows the run down; no step is lost."""
    epochs = 6
    with server_process(artefact, tmp_path) as server:
        flags = flags_of(shards, tmp_path / "run", epochs, *on_server(server.grpc))
        slow_down = When(IN_MID_EPOCH, lambda: server.brake.slow_down(0.1))
        ended = run_ranks(flags, tmp_path / "logs", slow_down, limit_s=LIMIT_S)

    assert_went_through(ended, tmp_path / "run", epochs)
    waits = [row["wait_share"] for row in events_of(tmp_path / "run")]
    assert min(waits[2:]) > waits[0]
    assert remains_of(tmp_path / "logs") == {}


@pytest.mark.parametrize(
    "fault",
    [aborting(grpc.StatusCode.INTERNAL), aborting(grpc.StatusCode.UNAVAILABLE), overloaded, garbage, empty],
    ids=["internal", "unavailable", "overloaded", "garbage", "empty"],
)
def test_an_erring_server(shards: list[str], tmp_path: Path, fault: Fault):
    """A server that answers errors costs fallback batches, and is used again when it does not."""
    epochs = 12
    with erring_server() as (mixer, address):
        flags = flags_of(shards, tmp_path / "run", epochs, *on_server(address), "--mixing.deadline-s", "2")
        begin = When(IN_MID_EPOCH, lambda: setattr(mixer, "fault", fault))
        end = When(BOTH_LOST, lambda: setattr(mixer, "fault", None))
        ended = run_ranks(flags, tmp_path / "logs", begin, end, limit_s=LIMIT_S)

    ranks = assert_went_through(ended, tmp_path / "run", epochs)
    assert all(rank["fallbacks"] > 0 for rank in ranks)
    # A rank may be answered in between, and lose the mixer again before the other has noticed.
    assert ended.count("mixer_back") == ended.count("mixer_lost")
    assert remains_of(tmp_path / "logs") == {}


def cut_shards(folder: Path) -> None:
    """Leave half of each shard to train on."""
    for path in folder.glob("train-*.tar"):
        os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_shard_cut_short(shards: list[str], tmp_path: Path, workers: str):
    """A shard that is truncated in mid-epoch ends the run in a sentence that names it."""
    flags = flags_of(shards, tmp_path / "run", 100, *CUTMIX, "--data.num-workers", workers)
    cut = When(IN_MID_EPOCH, lambda: cut_shards(tmp_path / "shards"))

    ended = run_ranks(flags, tmp_path / "logs", cut, limit_s=LIMIT_S)

    assert_gave_up(ended, "it has been truncated; fetch or write it again")
    assert f"error: {tmp_path}/shards/train-" in "".join(ended.logs)
    assert remains_of(tmp_path / "logs") == {}


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_shard_cut_short_within_the_budget(shards: list[str], tmp_path: Path, workers: str):
    """Samples lost with the end of a shard are replaced and counted while the budget allows; no step is lost."""
    epochs = 4
    budget = ["--data.num-workers", workers, "--data.skip-budget", str(STEPS * BATCH)]
    flags = flags_of(shards, tmp_path / "run", epochs, *CUTMIX, *budget)
    cut = When(IN_MID_EPOCH, lambda: cut_shards(tmp_path / "shards"))

    ended = run_ranks(flags, tmp_path / "logs", cut, limit_s=LIMIT_S)

    ranks = assert_went_through(ended, tmp_path / "run", epochs)
    assert sum(rank["skipped_samples"] for rank in ranks) >= (epochs - 2) * STEPS * BATCH // 2
    assert remains_of(tmp_path / "logs") == {}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank(shards: list[str], tmp_path: Path, rank: int):
    """A rank killed with -9 takes the other one with it, which says so in one sentence."""
    flags = flags_of(shards, tmp_path / "run", 100, *CUTMIX, "--data.num-workers", "1")
    kill = When(IN_MID_EPOCH, lambda: kill_run(str(tmp_path / "run"), rank))

    ended = run_ranks(flags, tmp_path / "logs", kill, limit_s=LIMIT_S)

    assert_gave_up(ended, f"rank {1 - rank} lost another rank", ranks=1)
    assert ended.errors[rank] == []
    assert remains_of(tmp_path / "logs") == {}


def assert_goes_on(flags: list[str], out: Path, epochs: int, folder: Path, *, ranks: int) -> None:
    """The newest checkpoint is whole, and ranks go on from it to the end; each step stands in the log once."""
    load_checkpoint(newest_checkpoint(out))

    ended = run_ranks([*flags, "--resume", "yes"], folder, limit_s=LIMIT_S, ranks=ranks)

    assert ended.status == 0, ended.logs
    assert summary_of(out)["world_size"] == ranks
    rows = [(row["epoch"], row["step"]) for row in events_of(out, "step")]
    assert rows == [(epoch, step) for epoch in range(1, epochs + 1) for step in range(1, STEPS + 1)]
    assert remains_of(folder) == {}


def test_a_run_that_is_asked_to_stop(shards: list[str], tmp_path: Path):
    """After SIGTERM to torchrun both ranks end behind the same step, from which one rank goes on to the end."""
    out, epochs = tmp_path / "run", 3
    flags = flags_of(shards, out, epochs, *CUTMIX)
    stop = When(IN_MID_EPOCH, lambda: os.kill(launcher(str(out)), signal.SIGTERM))

    ended = run_ranks(flags, tmp_path / "logs", stop, limit_s=LIMIT_S)

    assert ended.status != 0
    first, second = (log.splitlines()[-1] for log in ended.logs)
    assert first == second
    step = load_checkpoint(newest_checkpoint(out))["step"]
    assert first == f"stopped by SIGTERM after step {step} of epoch 2; go on with --resume auto"
    assert not any("Traceback" in log for log in ended.logs)
    assert remains_of(tmp_path / "logs") == {}
    assert_goes_on(flags, out, epochs, tmp_path / "logs-2", ranks=1)


def test_a_full_disk(shards: list[str], tmp_path: Path):
    """A disk that fills up ends the run in one sentence; given room again, it goes on from its last checkpoint."""
    epochs = 3
    with small_disk(tmp_path / "disk", megabytes=64) as disk:
        out = disk / "run"
        flags = flags_of(shards, out, epochs, *CUTMIX, "--checkpoint.every-steps", "3")
        fill = When(IN_MID_EPOCH, lambda: fill_disk(disk / "filler"))

        ended = run_ranks(flags, tmp_path / "logs", fill, limit_s=LIMIT_S)

        assert_gave_up(ended, "No space left on device")
        assert f"error: {out}/" in "".join(ended.logs)
        assert remains_of(tmp_path / "logs") == {}
        (disk / "filler").unlink()
        assert_goes_on(flags, out, epochs, tmp_path / "logs-2", ranks=2)


def refuse_checkpoints(folder: Path, epochs: int) -> None:
    """Let the checkpoints behind all further epochs find no room, on a full disk that needs no right to mount."""
    for epoch in range(1, epochs):
        (folder / f"epoch-{epoch:04d}-step-{STEPS:07d}.pt.partial").symlink_to("/dev/full")


def test_a_disk_that_refuses_a_checkpoint(shards: list[str], tmp_path: Path):
    """A checkpoint that finds no room ends the run in one sentence; the one before is good to go on from."""
    out, epochs = tmp_path / "run", 6
    flags = flags_of(shards, out, epochs, *CUTMIX)
    refuse = When(" epoch epoch=1 ", lambda: refuse_checkpoints(out / "checkpoints", epochs))

    ended = run_ranks(flags, tmp_path / "logs", refuse, limit_s=LIMIT_S)

    assert_gave_up(ended, "No space left on device")
    last = load_checkpoint(newest_checkpoint(out))["epoch"]
    refused = out / f"checkpoints/epoch-{last + 1:04d}-step-{STEPS:07d}.pt"
    assert f"error: {refused}: No space left on device" in ended.logs[0]
    assert remains_of(tmp_path / "logs") == {}
    assert_goes_on(flags, out, epochs, tmp_path / "logs-2", ranks=2)
