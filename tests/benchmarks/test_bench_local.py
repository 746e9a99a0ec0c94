"""`samix bench local`: what it writes and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.local import main


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_writes_table_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A run prints the table, and writes machine, versions and the speed of every way."""
    out = tmp_path / "new" / "local.json"

    status = main(["--json", str(out), "--small", "--batch-sizes", "1", "2", "--threads", "1", "--seconds", "0.01",
                   "--rounds", "1"])  # fmt: skip

    report = json.loads(out.read_text())
    assert not status
    assert {"date", "machine", "versions"} <= report.keys()
    assert [(case["threads"], case["batch_size"]) for case in report["cases"]] == [(1, 1), (1, 2)]
    for case in report["cases"]:
        assert set(case["images_per_s"]) == {"forward", "whole pass", "bf16", "rows first"}
        assert all(speed > 0 for speed in case["images_per_s"].values())
    assert report["jpeg"][0]["images_per_s"]["decode"] > 0
    assert "whole pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--seconds", "0"], "seconds must be above 0 and at most 600, got 0"),
        (["--batch-sizes", "0"], "batch-sizes must lie in 1..4096, got (0,)"),
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
    ],
)
def test_refuses_bad_flags(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """A flag out of bounds is refused with a sentence and status 2."""
    status = main(flags)

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
