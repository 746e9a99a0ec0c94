"""`make bench`: what it writes, what it refuses, and what it leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training import survivors

from benchmarks.machine import choose_cores, on_core
from benchmarks.server import main

ROOT = Path(__file__).parents[2]
LIMIT_S = 90.0


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.server", "--json", str(out), *flags]


@pytest.mark.slow
def test_writes_table_and_figures(tmp_path: Path):
    """A run prints the table, and writes machine, versions and every path's figures; ratios are of the bare speed."""
    out = tmp_path / "new" / "server.json"

    run = subprocess.run(
        command(out, "--seconds", "0.1", "--rounds", "1"), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S
    )

    assert run.returncode == 0, run.stderr
    report = json.loads(out.read_text())
    assert {"date", "machine", "versions", "pinned"} <= report.keys()
    assert report["versions"]["commit"]
    assert [case["mixer"] for case in report["cases"]] == ["samix-digits-r10", "random-r10"]
    for case in report["cases"]:
        assert list(case["paths"]) == ["bare", "tcp", "unix"]
        for path in case["paths"].values():
            assert path["ratio"] == pytest.approx(path["images_per_s"] / case["paths"]["bare"]["images_per_s"], 1e-2)
            assert 0 < path["lone_p50_s"] <= path["lone_p95_s"]
    assert "of bare" in run.stdout


@pytest.mark.slow
def test_leaves_no_server_behind(tmp_path: Path):
    """SIGTERM in the middle of a run ends the server too, and writes no figures."""
    out = tmp_path / "server.json"
    bench = subprocess.Popen(command(out, "--seconds", "60"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert bench.stdout
    assert any(line.startswith("round 1") for line in bench.stdout)
    found = re.search(r"unix=(\S+)/mixer.sock", out.with_suffix(".log").read_text())
    assert found

    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=LIMIT_S)

    assert bench.returncode == 130
    assert not out.exists()
    assert survivors(found[1]) == {}
    assert not Path(found[1]).exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seconds", "0"], "seconds must be above 0 and at most 600, got 0"),
        (["--seconds", "nan"], "seconds must be above 0 and at most 600, got nan"),
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
        (["--json", "."], "json must name a file that ends in .json, got '.'"),
    ],
)
def test_refuses_bad_flags(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """A flag out of bounds is refused with a sentence and status 2, before anything starts."""
    status = main(flags)

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds nothing to cores")
def test_binding_ends_with_the_block():
    """Inside the block this thread runs on one core, afterwards where it could before."""
    before = os.sched_getaffinity(0)

    with on_core(choose_cores().server):
        inside = os.sched_getaffinity(0)

    assert inside == {max(before)}
    assert os.sched_getaffinity(0) == before
