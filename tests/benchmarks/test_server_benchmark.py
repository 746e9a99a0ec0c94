"""`make bench` measures, prints a table and leaves JSON."""

import json
from pathlib import Path

import pytest

from benchmarks.server import main


@pytest.mark.slow
def test_measures_against_the_bare_mixer(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A short run gives a positive ratio for every case and says where and when it was measured."""
    status = main(["--seconds", "0.2", "--json", str(tmp_path / "figures.json")])

    assert status == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert len(figures["rows"]) == 2
    assert all(row["tcp_over_bare"] > 0 and row["unix_over_bare"] > 0 for row in figures["rows"])
    assert figures.keys() >= {"machine", "commit", "date", "torch"}
    assert "ratio" in capsys.readouterr().out


def test_refuses_no_time(capsys: pytest.CaptureFixture[str]):
    """A length that measures nothing is refused with its value."""
    assert main(["--seconds", "0"]) == 2
    assert "got 0" in capsys.readouterr().err
