"""`python -m benchmarks.overlap`: what it measures, what it reports, what it refuses and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_making import write_noise_shards, write_tar
from training import survivors

from benchmarks.machine import process_cpu_s
from benchmarks.overlap import main
from benchmarks.overlap_neighbour import neighbour
from benchmarks.overlap_report import LOCAL, REMOTE, summarise, table
from benchmarks.overlap_trainer import StepRows, Turn
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import tiny_spec

ROOT = Path(__file__).parents[2]
LIMIT_S = 240.0
TINY = ["--backbone.layers", "1", "1", "1", "1", "--backbone.channels", "4", "8", "8", "8", "--image-size", "32"]


def turn(step_s: Sequence[float], *, waited_s: float = 0.0, cpu_s: float = 1.0) -> Turn:
    return Turn(
        step_s=tuple(step_s),
        waited_s=(waited_s,) * len(step_s),
        cpu_s=cpu_s * len(step_s),
        beside_cpu_s=sum(step_s) / 4,
    )


def command(out: Path, shards: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.overlap", "--shards", shards, "--json", str(out), *TINY, *flags]


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def row(step: int, event: str = "step") -> str:
    return json.dumps({"event": event, "step": step}) + "\n"


def steps_of(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [row["step"] for row in rows]


def test_rows_come_once_and_whole(tmp_path: Path):
    """Each step of a growing log is read once; other events, and a line that is still written, are not."""
    path = tmp_path / "log.jsonl"
    rows = StepRows(path)

    before = rows.take(5)
    append(path, row(1) + row(7, "epoch") + row(2) + row(3)[:9])
    first, second = rows.take(1), rows.take(5)
    append(path, row(3)[9:])
    third = rows.take(5)

    assert [steps_of(taken) for taken in (before, first, second, third)] == [[], [1], [2], [3]]


def test_forgotten_rows_do_not_come_back(tmp_path: Path):
    """What was done before a pause does not count after it."""
    path = tmp_path / "log.jsonl"
    rows = StepRows(path)
    append(path, row(1) + row(2))
    rows.take(1)
    append(path, row(3))

    rows.skip_all()
    append(path, row(4))

    assert steps_of(rows.take(5)) == [4]


def test_figures_are_medians_of_medians():
    """A step's time is the median over the rounds of the rounds' medians; a wait is compared with its own steps."""
    turns = {
        REMOTE: [turn([1, 2, 9], waited_s=0.04), turn([2, 2, 2], waited_s=0.02), turn([3, 3, 3], waited_s=0.3)],
        LOCAL: [turn([2, 2, 8], cpu_s=0.5), turn([1, 1, 1], cpu_s=2), turn([2, 2, 2], cpu_s=4)],
    }

    found = summarise(turns)

    assert found["trainers"][REMOTE]["step_s_rounds"] == [2, 2, 3]
    assert (found["trainers"][REMOTE]["step_s"], found["trainers"][LOCAL]["step_s"]) == (2, 2)
    assert (found["ratio"], found["ratio_rounds"]) == (1, [1, 2, 1.5])
    assert (found["cpu_ratio"], found["cpu_ratio_rounds"]) == (0.5, [2, 0.5, 0.25])
    assert found["trainers"][REMOTE]["wait_share_rounds"] == [0.01, 0.01, 0.1]
    assert found["wait_share"] == 0.01
    assert found["trainers"][LOCAL]["other_core_share"] == 0.25


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=1, max_size=9), st.floats(0.1, 100))
def test_ratios_are_of_one_round(rounds: list[tuple[float, float]], slowdown: float):
    """A machine that is slower for a whole round changes no ratio of a round."""
    turns = {REMOTE: [turn([mine]) for mine, _ in rounds], LOCAL: [turn([other]) for _, other in rounds]}
    slower = {name: [turn([slowdown * taken[0].step_s[0]]), *taken[1:]] for name, taken in turns.items()}

    ratios, ratios_of_slower = summarise(turns)["ratio_rounds"], summarise(slower)["ratio_rounds"]

    assert ratios_of_slower == pytest.approx(ratios, abs=1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("step_s", "waited_s", "verdicts"),
    [
        (1.05, 0.021, ["ok", "ok"]),
        (1.06, 0.0, ["over", "ok"]),
        (1.0, 0.0201, ["ok", "over"]),
    ],
)
def test_both_promises_have_a_verdict(step_s: float, waited_s: float, verdicts: list[str]):
    """Steps up to 1.05 of CutMix's and waits up to 2 % of a step are within; more of either is not."""
    found = summarise({REMOTE: [turn([step_s], waited_s=waited_s)], LOCAL: [turn([1.0])]})

    lines = table(found).splitlines()

    assert [lines[-3].split()[-1], lines[-1].split()[-1]] == verdicts
    assert found["is_within"] == (verdicts == ["ok", "ok"])


def test_processor_time_of_another_process():
    """It is the time Python reports for its own process; of one that is not there, it is an error."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    before, found, after = time.process_time(), process_cpu_s(os.getpid()), time.process_time()

    assert before <= found <= after
    with pytest.raises(ProcessLookupError):
        process_cpu_s(ended.pid)


@pytest.mark.slow
def test_neighbour_keeps_the_pace_it_is_given(tmp_path: Path):
    """It runs its first pass at once and the next ones a period apart, and none while it rests."""
    artefact = tmp_path / "tiny.safetensors"
    save_artefact(artefact, random_mixer(tiny_spec(), seed=0, name="tiny"), {"data": "none"})

    with neighbour(artefact, 8, core=None) as beside:
        with beside.pacing(1000.0):
            _spend(beside.process_id, 0.005)
        lone = beside.passes
        with beside.pacing(0.0):
            _spend(beside.process_id, 0.2)
        many, rested_s = beside.passes, process_cpu_s(beside.process_id)
        _spend(os.getpid(), 0.2)
        spent_at_rest_s = process_cpu_s(beside.process_id) - rested_s
        process_id = beside.process_id

    assert lone == 1
    assert many > 2
    assert spent_at_rest_s < 0.01
    with pytest.raises(ProcessLookupError):
        process_cpu_s(process_id)


def _spend(process_id: int, seconds: float) -> None:
    """Wait until a process had so much processor time."""
    end_s, deadline_s = process_cpu_s(process_id) + seconds, time.monotonic() + 60
    while process_cpu_s(process_id) < end_s:
        assert time.monotonic() < deadline_s


@pytest.mark.slow
@pytest.mark.timeout(300)  # four programs start, one after the other
def test_measures_and_judges(tmp_path: Path):
    """Real trainers, server and neighbour are measured; the status says whether the promises were kept."""
    shards, out = write_noise_shards(tmp_path, [48], side=32), tmp_path / "new" / "overlap.json"

    run = subprocess.run(
        command(out, shards, "--rounds", "2", "--steps", "3", "--batch-size", "8"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )

    report = json.loads(out.read_text())
    assert run.returncode == (0 if report["is_within"] else 1), run.stderr
    assert {"date", "machine", "versions", "pinned", "settings"} <= report.keys()
    assert report["pinned"]["client"] != report["pinned"]["server"]
    assert list(report["trainers"]) == [REMOTE, LOCAL]
    for found in report["trainers"].values():
        assert len(found["step_s_rounds"]) == 2
        assert 0 < found["waited_s"] < found["step_s"]
        assert found["cpu_s"] > 0
        assert 0 < found["other_core_share"] <= 1.1
    assert report["ratio"] == pytest.approx(
        report["trainers"][REMOTE]["step_s"] / report["trainers"][LOCAL]["step_s"], rel=1e-2
    )
    assert "of CutMix's" in run.stdout
    assert survivors(str(tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.timeout(300)  # four programs start, one after the other
def test_a_trainer_that_fails_is_quoted(tmp_path: Path):
    """What a trainer says before it ends reaches the person, with status 1, and no figures are left."""
    shards, out = tmp_path / "broken.tar", tmp_path / "overlap.json"
    write_tar(shards, {"0.jpg": b"no picture", "0.cls": b"0"})
    out.write_text("older figures")

    run = subprocess.run(command(out, str(shards)), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)

    assert run.returncode == 1
    assert "overlap-remote` ended with status 2; its log says" in run.stderr
    assert "error: sample 0 of" in run.stderr
    assert "Traceback" not in run.stderr
    assert not out.exists()
    assert survivors(str(tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.timeout(300)  # four programs start, one after the other
def test_leaves_nobody_behind(tmp_path: Path):
    """SIGTERM in the middle of a run ends server, neighbour and both trainers, the stopped one included."""
    shards, out = write_noise_shards(tmp_path, [48], side=32), tmp_path / "overlap.json"
    bench = subprocess.Popen(
        command(out, shards, "--batch-size", "8", "--rounds", "99"), cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert bench.stdout
    assert any(line.startswith("round 2") for line in bench.stdout)

    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=LIMIT_S)

    assert bench.returncode == 130
    assert not out.exists()
    assert survivors(str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
        (["--steps", "0"], "steps must lie in 1..4096, got 0"),
        (["--batch-size", "0"], "batch_size must lie in 1..4096, got 0"),
        (["--json", "figures.txt"], "json must name a file that ends in .json, got 'figures.txt'"),
        (["--stage", "4"], "stage must be 0..3 for this backbone, got 4"),
    ],
)
def test_refuses_bad_flags(flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A flag out of bounds is refused with a sentence and status 2, before anything starts."""
    shards = write_noise_shards(tmp_path, [4])

    status = main(["--shards", shards, "--json", f"{tmp_path}/overlap.json", *flags])

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("shards", "sentence"),
    [
        ("{folder}/none-*.tar", "none-*.tar"),
        ("http://example.org/a.tar", "error: shards must be local files, got http://example.org/a.tar; fetch it first"),
    ],
)
def test_refuses_other_shards(shards: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Shards that are not there, or not on this machine, are named, with status 2, before anything starts."""
    status = main(["--shards", shards.format(folder=tmp_path), "--json", f"{tmp_path}/overlap.json"])

    assert status == 2
    assert sentence in capsys.readouterr().err
