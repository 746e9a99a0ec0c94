"""`make bench-endurance`: what it measures, what it refuses, and what it leaves behind."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training import survivors

from benchmarks.endurance import main
from benchmarks.endurance_crowd import Crowd
from benchmarks.endurance_kills import KEY_BYTES, Ledger, make_batch, read_key
from benchmarks.endurance_report import Check, PartReport, table
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import tiny_spec

ROOT = Path(__file__).parents[2]
LIMIT_S = 110.0
TINY = {
    "fairness": ["--fairness.seconds", "1", "--fairness.streams", "4", "--fairness.batch-size", "8"],
    "pressure": ["--pressure.clients", "4", "--pressure.batch-size", "8", "--pressure.memory-mib", "2048"],
    "soak": ["--soak.seconds", "2", "--soak.warm-up-s", "2", "--soak.streams", "40", "--soak.clients", "2"],
    "kills": ["--kills.seconds", "20", "--kills.pause-s", "1", "--kills.clients", "2"],
}
"""Flags that make each part short."""
UNCERTAIN = ("growth of memory", "threads more")
"""What a run of seconds says nothing about."""


def command(out: Path, part: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.endurance", "--json", str(out), "--parts", part, *flags]


def run_part(part: str, out: Path) -> tuple[dict[str, Any], str]:
    run = subprocess.run(
        command(out, part, *TINY[part]), cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert out.exists(), run.stderr
    return json.loads(out.read_text()), run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("part", TINY)
def test_each_part_keeps_its_promises(part: str, tmp_path: Path):
    """A short run of a part prints each figure with its limit and a verdict, writes them, and keeps them."""
    report, printed = run_part(part, tmp_path / "new" / "endurance.json")

    assert {"date", "machine", "versions", "pinned"} <= report.keys()
    (found,) = report["parts"]
    assert found["part"] == part
    missed = [check["figure"] for check in found["checks"] if not check["is_met"]]
    assert [figure for figure in missed if not figure.startswith(UNCERTAIN)] == []
    for check in found["checks"]:
        assert re.search(rf"^  {re.escape(check['figure'])} .* (ok|MISSED)$", printed, re.MULTILINE)


@pytest.mark.slow
def test_leaves_no_server_behind(tmp_path: Path):
    """SIGTERM in the middle of a run ends the server too, and writes no figures."""
    out = tmp_path / "endurance.json"
    bench = subprocess.Popen(command(out, "soak", "--soak.seconds", "600"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert bench.stdout
    assert any("warm-up" in line for line in bench.stdout)
    folders = {path.name for path in Path("/tmp").glob("samix-bench-*")}

    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=LIMIT_S)

    assert bench.returncode == 130
    assert not out.exists()
    address = re.search(r"grpc=(\S+)", (tmp_path / "endurance-soak.log").read_text())
    assert address
    assert folders
    assert survivors(str(tmp_path)) == {}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--fairness.seconds", "0"], "fairness.seconds must be above 0 and at most 600, got 0"),
        (["--pressure.clients", "0"], "pressure.clients must lie in 1..1000"),
        (["--pressure.patience-s", "nan"], "pressure.patience-s must be above 0 and at most 7200, got nan"),
        (["--soak.clients", "65"], "soak.streams must lie in 0..10000000 and soak.clients in 1..64, got 20000, 65"),
        (["--kills.pause-s", "-1"], "kills.pause-s must be above 0 and at most 7200, got -1"),
        (["--json", "."], "json must name a file that ends in .json, got '.'"),
    ],
)
def test_refuses_bad_flags(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """A flag out of bounds is refused with a sentence and status 2, before anything starts."""
    status = main(flags)

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize(
    ("value", "bound", "is_met"), [(1, "at most", True), (1.01, "at most", False), (0.99, "at least", False)]
)
def test_a_limit_itself_is_good_enough(value: float, bound: Any, is_met: bool):
    """A figure at its limit is ok, one beyond it is MISSED, in the table and for the whole part."""
    check = Check(figure="growth", value=value, bound=bound, limit=1, unit=" %")
    report = PartReport(name="soak", checks=[check])

    assert report.is_met is is_met
    assert table([report]).endswith("ok" if is_met else "MISSED")


@given(st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES), st.floats(0, 1, width=32))
def test_key_survives_any_mask(key: bytes, share: float):
    """The key is read back from mixed images, whatever the masks were, and from no others."""
    images, plan = make_batch(key)
    whole = images / 255

    mixed = share * whole + (1 - share) * whole[plan.partner]

    assert read_key(mixed) == key
    assert read_key(whole.flip(0)) == b""


def test_ledger_tells_lost_doubled_and_wrong():
    """A batch that is not answered is lost; an answer given to another batch is wrong, and its own is doubled."""
    mixer = random_mixer(tiny_spec(), seed=0, name="tiny")
    ledger = Ledger(mixer)
    for key in (b"0001", b"0002", b"0003"):
        ledger.asked(key)
    (first, first_plan), (second, second_plan) = make_batch(b"0001"), make_batch(b"0002")
    answer = mixer.mix(first, lam=first_plan.lam, partner=first_plan.partner)

    ledger.answered(first, first_plan, answer)
    ledger.answered(second, second_plan, answer)

    values = {check.figure: check.value for check in ledger.checks()}
    assert values["batches lost"] == 2
    assert values["batches answered twice"] == 1
    assert values["batches answered wrongly"] == 1


def test_ledger_compares_pixels():
    """An answer with the right key and another mix is wrong."""
    mixer = random_mixer(tiny_spec(), seed=0, name="tiny")
    ledger = Ledger(mixer)
    images, plan = make_batch(b"0001")
    other = mixer.mix(images, lam=torch.zeros(len(images)), partner=plan.partner)

    ledger.answered(images, plan, other)

    assert next(c.value for c in ledger.checks() if c.figure == "batches answered wrongly") == 1


def test_crowd_raises_what_its_threads_meet():
    """An error on any thread ends the block with it, and the others stop."""

    def work(number: int, stopping: threading.Event) -> None:
        if number == 1:
            raise ValueError("met by one")
        assert stopping.wait(LIMIT_S)

    with pytest.raises(ValueError, match="met by one"), Crowd(3, work) as crowd:
        crowd.wait(LIMIT_S)
