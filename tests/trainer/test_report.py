"""What a run leaves for programs."""

import json
from pathlib import Path
from typing import Any

import pytest

from samix.errors import ConfigError
from trainer.report import Row, RunLog, read_log, write_summary


class Kept:
    """A sink that keeps all it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, row: Row) -> None:
        self.told.append(row)

    def reopen(self, epoch: int, step: int) -> None:
        self.told.append((epoch, step))

    def close(self) -> None:
        self.told.append("closed")


def rows(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def write_run(folder: Path) -> RunLog:
    """Write two whole epochs of three steps each, and two steps of the third."""
    run_log = RunLog(folder, is_writer=True)
    for epoch in (1, 2, 3):
        for step in (1, 2, 3)[: 2 if epoch == 3 else 3]:
            run_log.write("step", epoch=epoch, step=step)
        if epoch < 3:
            run_log.write("epoch", epoch=epoch, top1=0.5)
    return run_log


def places(found: list[Row]) -> list[tuple[str, int, int | None]]:
    return [(row["event"], row["epoch"], row.get("step")) for row in found]


def test_log_is_one_object_a_line(tmp_path: Path):
    """Events are appended as JSON lines with the seconds since the start, and remembered by kind."""
    run_log = RunLog(tmp_path, is_writer=True)

    run_log.write("step", epoch=1, loss=1.0)
    run_log.write("epoch", epoch=1, top1=0.5)

    written = rows(tmp_path)
    assert [row["event"] for row in written] == ["step", "epoch"]
    assert all(row["seconds"] >= 0 for row in written)
    assert run_log.of("epoch") == written[1:]
    assert read_log(tmp_path / "log.jsonl") == written


def test_log_replaces_that_of_the_run_before(tmp_path: Path):
    """A run in the same folder starts its log anew."""
    write_run(tmp_path)

    RunLog(tmp_path, is_writer=True).write("epoch", epoch=1)

    assert places(rows(tmp_path)) == [("epoch", 1, None)]


def test_only_the_main_rank_writes(tmp_path: Path):
    """The other ranks remember their events and write nothing, not even to forget what comes again."""
    run_log = RunLog(tmp_path / "empty", is_writer=False)
    written = places(write_run(tmp_path).rows)
    resumed = RunLog(tmp_path, is_writer=False)

    run_log.write("epoch", epoch=1, top1=0.5)
    resumed.reopen(1)

    assert [row["top1"] for row in run_log.of("epoch")] == [0.5]
    assert not (tmp_path / "empty").exists()
    assert places(resumed.rows)[-1] == ("epoch", 1, None)
    assert places(rows(tmp_path)) == written


@pytest.mark.parametrize(
    ("epoch", "step", "last"),
    [
        (0, 0, None),
        (0, 2, ("step", 1, 2)),
        (0, 3, ("step", 1, 3)),
        (1, 0, ("epoch", 1, None)),
        (1, 1, ("step", 2, 1)),
        (2, 0, ("epoch", 2, None)),
        (2, 5, ("step", 3, 2)),
    ],
)
def test_rows_that_are_done_again_vanish(tmp_path: Path, epoch: int, step: int, last: tuple | None):
    """A resumed run keeps the rows up to the place it goes on from, in the file too, and appends to them."""
    before = places(write_run(tmp_path).rows)
    kept = before[: before.index(last) + 1 if last else 0]
    resumed = RunLog(tmp_path, is_writer=True)

    resumed.reopen(epoch, step)
    reopened = rows(tmp_path)
    resumed.write("step", epoch=9, step=9)

    assert places(reopened) == kept
    assert places(rows(tmp_path)) == places(resumed.rows) == [*kept, ("step", 9, 9)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_time_goes_on_where_it_stopped(tmp_path: Path):
    """Seconds count what the run took before it was resumed, not what was lost nor the pause."""
    run_log = RunLog(tmp_path, is_writer=True)
    run_log.write("epoch", epoch=1)
    run_log.rows[0]["seconds"] = 1000.0
    (tmp_path / "log.jsonl").write_text(json.dumps(run_log.rows[0]) + "\n")
    resumed = RunLog(tmp_path, is_writer=True)

    resumed.reopen(1)

    assert 1000 <= resumed.seconds < 1100


def test_a_run_without_a_log_is_taken_up(tmp_path: Path):
    """A log that was deleted begins where the run goes on."""
    resumed = RunLog(tmp_path, is_writer=True)

    resumed.reopen(1, 2)
    resumed.write("step", epoch=2, step=3)

    assert places(rows(tmp_path)) == [("step", 2, 3)]


def test_a_last_line_that_was_cut_does_not_count(tmp_path: Path):
    """A log of a killed run is read at whatever byte it was cut."""
    write_run(tmp_path)
    path = tmp_path / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    before = read_log(path)[:-1]

    for cut in range(len(lines[-1]) - 1):
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
        assert read_log(path) == before

    resumed = RunLog(tmp_path, is_writer=True)
    resumed.reopen(9)
    assert rows(tmp_path) == before


@pytest.mark.parametrize("damage", ['{"event": "ep', "[1, 2]", '{"event": "epoch"}', ""])
def test_another_damaged_line_is_refused(tmp_path: Path, damage: str):
    """A line that no kill explains is named."""
    write_run(tmp_path)
    path = tmp_path / "log.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[2:], ""]))

    with pytest.raises(ConfigError, match=r"line 2 of .*log.jsonl is damaged"):
        RunLog(tmp_path, is_writer=True).reopen(1)


def test_sinks_get_every_row(tmp_path: Path):
    """What takes rows elsewhere is told each of them, where a run goes on, and when it is over."""
    sink = Kept()
    run_log = RunLog(tmp_path, is_writer=True, sinks=[sink])

    run_log.reopen(1, 2)
    run_log.write("step", epoch=2, step=3)
    run_log.close()

    assert sink.told == [(1, 2), run_log.rows[0], "closed"]


def test_summary_appears_whole(tmp_path: Path):
    """The summary is JSON and replaces the one before; no half-written file stays."""
    path = tmp_path / "summary.json"
    write_summary(path, {"top1": 0.1})

    write_summary(path, {"top1": 0.9})

    assert json.loads(path.read_text()) == {"top1": 0.9}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path):
    """A failure while writing leaves the summary of before."""
    path = tmp_path / "summary.json"
    write_summary(path, {"top1": 0.1})

    with pytest.raises(TypeError):
        write_summary(path, {"top1": object()})

    assert json.loads(path.read_text()) == {"top1": 0.1}
