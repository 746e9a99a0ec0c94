"""Runs in processes of their own that are killed at random steps: nothing is lost, repeated or changed."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import When, kill_run
from training import events_of, survivors, torchrun, write_pictures

from services.cli import ProgramFailed
from trainer.children import start_child
from trainer.sample_trace import read_trace

LIMIT_S = 110.0
EPOCHS, STEPS = 2, 12
KILLS = 20

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name shards of STEPS steps and a rest, in several files."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(4):
        write_pictures(folder / f"train-{number}.tar", 200)
    val = write_pictures(folder / "val.tar", 30)
    return ["--data.train", f"{folder}/train-{{0..3}}.tar", "--data.val", val]


def flags_of(shards: list[str], out: Path, *further: str) -> list[str]:
    trace = ["--trace-samples", "--log-every", "1", "--checkpoint.every-steps", "3"]
    return [*shards, "--out", str(out), "--epochs", str(EPOCHS), "--mixing.policy", "cutmix", *trace, *further]


def train(
    shards: list[str], out: Path, ranks: int, *further: str, restarts: int = 0, hear: Callable[[str], None] = print
) -> None:
    """Run the trainer on some ranks until it ends.

    Raises:
        ChildFailed: if it does not end well.
    """
    log = out.with_suffix(f".{len(list(out.parent.glob(f'{out.name}.*.log')))}.log")
    launch = torchrun(*flags_of(shards, out, *further), ranks=ranks, restarts=restarts)
    with start_child("torch.distributed.run", launch, log) as child:
        child.wait(LIMIT_S, hear)


def mark(epoch: int, step: int) -> str:
    """What the log shows of a step, just before its checkpoint or some time after it."""
    return f" step epoch={epoch} step={step} "


def losses(out: Path) -> list[tuple[int, int, float]]:
    return [(row["epoch"], row["step"], row["loss"]) for row in events_of(out, "step")]


def positions(out: Path) -> list[Counter[int]]:
    """Count the samples of each epoch, over all ranks."""
    counts = [Counter[int]() for _ in range(EPOCHS)]
    for path in out.glob("samples-rank*.jsonl"):
        for row in read_trace(path):
            counts[row["epoch"]].update(row["positions"])
    return counts


@pytest.fixture(scope="module")
def whole(shards: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Uninterrupted runs, by number of ranks."""
    folders = {ranks: tmp_path_factory.mktemp("whole") / f"ranks{ranks}" for ranks in (1, 2)}
    for ranks, folder in folders.items():
        train(shards, folder, ranks)
    return folders


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_anywhere_and_resumed(shards: list[str], whole: dict[int, Path], tmp_path: Path, number: int):
    """Killed with -9 at a random step, a run goes on: with as many ranks by the very same losses, and always with each
    sample of an epoch exactly once."""
    draw = random.Random(f"kill {number}")
    before, after = [(1, 1), (2, 2), (2, 1), (1, 2)][number % 4]
    step = draw.randrange(4, EPOCHS * STEPS)
    out, killed = tmp_path / "run", list[int]()
    kill = When(mark(1 + step // STEPS, 1 + step % STEPS), lambda: killed.append(kill_run(str(out))))

    with pytest.raises(ProgramFailed, match="ended with status -9"):
        train(shards, out, before, hear=kill)
    assert killed[0] > before
    assert survivors(str(out)) == {}
    train(shards, out, after, "--resume", "yes")

    assert positions(out) == positions(whole[after])
    assert all(set(epoch.values()) == {1} for epoch in positions(out))
    rows = [(epoch, step) for epoch, step, _ in losses(out)]
    assert rows == [(epoch, step) for epoch in range(1, EPOCHS + 1) for step in range(1, STEPS + 1)]
    if before == after:
        assert losses(out) == losses(whole[after])


def test_torchrun_goes_on_without_a_hand(shards: list[str], whole: dict[int, Path], tmp_path: Path):
    """A rank killed with -9 costs the steps since the last checkpoint: torchrun restarts the group, which goes on."""
    out, killed = tmp_path / "run", list[int]()
    kill = When(mark(2, 5), lambda: killed.append(kill_run(str(out), rank=1)))

    train(shards, out, 2, restarts=1, hear=kill)

    assert killed == [1]
    assert losses(out) == losses(whole[2])
    assert positions(out) == positions(whole[2])
    assert json.loads((out / "summary.json").read_text())["world_size"] == 2
