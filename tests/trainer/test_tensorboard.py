"""TensorBoard shows the rows of a run."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training import ALONE

from samix.errors import ConfigError
from trainer.report import RunLog
from trainer.tensorboard import tensorboard_sinks

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

STEPS = 4


def open_log(folder: Path) -> RunLog:
    return RunLog(folder, is_writer=True, sinks=tensorboard_sinks(True, folder, ALONE, steps_per_epoch=STEPS))


def write_steps(run_log: RunLog, epoch: int, steps: range, loss: float) -> None:
    for step in steps:
        run_log.write("step", epoch=epoch, step=step, of=STEPS, loss=loss, policy="remote")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read the points of every curve, as TensorBoard shows them."""
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_rows_become_points(tmp_path: Path):
    """Numbers of rows stand at the count of steps over all epochs, under the kind of their row, before the run ends."""
    run_log = open_log(tmp_path)

    write_steps(run_log, 1, range(2, 5, 2), 2.0)
    run_log.write("epoch", epoch=1, top1=0.5, fallbacks=3)
    write_steps(run_log, 2, range(2, 3), 1.0)

    try:
        assert scalars(tmp_path) == {
            "step/loss": [(2, 2.0), (4, 2.0), (6, 1.0)],
            "epoch/top1": [(4, 0.5)],
            "epoch/fallbacks": [(4, 3.0)],
        }
    finally:
        run_log.close()


@pytest.mark.parametrize(("step", "kept"), [(0, []), (2, [(5, 1.0), (6, 1.0)])])
def test_resumed_run_has_no_double_points(tmp_path: Path, step: int, kept: list):
    """Points after the place a run goes on from are hidden behind those made again."""
    run_log = open_log(tmp_path)
    write_steps(run_log, 1, range(1, 5), 2.0)
    run_log.write("epoch", epoch=1, top1=0.5)
    write_steps(run_log, 2, range(1, 4), 1.0)
    run_log.close()

    resumed = open_log(tmp_path)
    resumed.reopen(1, step)
    write_steps(resumed, 2, range(step + 1, 4), 7.0)
    resumed.close()

    again = [(4 + number, 7.0) for number in range(step + 1, 4)]
    found = scalars(tmp_path)
    assert found["step/loss"] == [(1, 2.0), (2, 2.0), (3, 2.0), (4, 2.0), *kept, *again]
    assert found["epoch/top1"] == [(4, 0.5)]


def test_new_run_hides_the_one_before(tmp_path: Path):
    """A run that starts anew in a folder shows nothing of an earlier one."""
    first = open_log(tmp_path)
    write_steps(first, 1, range(1, 5), 2.0)
    first.close()

    second = open_log(tmp_path)
    write_steps(second, 1, range(1, 2), 7.0)
    second.close()

    assert scalars(tmp_path) == {"step/loss": [(1, 7.0)]}


def test_only_the_main_rank_writes_when_asked(tmp_path: Path):
    """Without the flag, and on other ranks, nothing is written."""
    other = replace(ALONE, rank=1, size=2)

    assert tensorboard_sinks(False, tmp_path, ALONE, steps_per_epoch=STEPS) == ()
    assert tensorboard_sinks(True, tmp_path, other, steps_per_epoch=STEPS) == ()


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the package the flag is refused before the first step, with the command that installs it."""
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)

    with pytest.raises(ConfigError, match=r"pip install 'samix-service\[tensorboard\]'"):
        tensorboard_sinks(True, tmp_path, ALONE, steps_per_epoch=STEPS)
