"""`samix bench intruders`: what it writes, what it refuses, and that each intruder gets the answer it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.intruder_acts import ACTS
from benchmarks.intruders import main

ROOT = Path(__file__).parents[2]
LIMIT_S = 280.0

ANSWERS = {
    "no-token": {"UNAUTHENTICATED"},
    "oversize": {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"},
    "pages": {"HTTP/1.0 401 Unauthorized"},
}


@pytest.mark.slow
@pytest.mark.timeout(LIMIT_S + 10)
def test_intruders_get_what_they_deserve(tmp_path: Path):
    """Every intruder comes once; each is answered by the right refusal alone, and health is told meanwhile."""
    out = tmp_path / "intruders.json"
    flags = ["--json", str(out), "--seconds", "1.5", "--rounds", "1"]

    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.intruders", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )

    assert run.returncode in (0, 1), run.stderr  # on a busy machine ratios are anything
    report = json.loads(out.read_text())
    assert {"date", "machine", "versions", "limit"} <= report.keys()
    assert list(report["acts"]) == list(ACTS)
    for act, answers in ANSWERS.items():
        assert set(report["acts"][act]["done"]) <= answers | {"DEADLINE_EXCEEDED"}
    assert sum(row["healthy"] for row in report["acts"].values()) >= len(ACTS) / 2
    assert "kept" in run.stdout


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--acts", "burgle"], "no act is called 'burgle'; there are connections, flood"),
        (["--seconds", "0"], "seconds must be above 0 and at most 600, got 0"),
    ],
)
def test_wrong_wishes(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """An act that does not exist, and windows of no length, are refused with the value."""
    assert main(flags) == 2
    assert sentence in capsys.readouterr().err
