"""`samix bench peers`: what it computes, what it installs, what it refuses, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training import survivors

from benchmarks.peer_systems import OURS, SCRIPTS, SYSTEMS, System
from benchmarks.peer_venvs import NotInstalled, open_venv, read_versions
from benchmarks.peers import main
from benchmarks.peers_plot import draw_peers
from benchmarks.peers_report import Entry, summarise, table

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0
MINE = Entry(OURS, "as it is")
OTHER = Entry("KServe", "as documented")
SLOW = Entry("KServe", "malloc tuned")
PNG = b"\x89PNG"


def figures(
    batches: int, *, concurrency: int = 1, elapsed_s: float = 64.0, server_cpu_s: float = 1.0
) -> dict[str, Any]:
    """Make a measurement whose images per second are its batches."""
    return {
        "concurrency": concurrency,
        "batches": batches,
        "elapsed_s": elapsed_s,
        "server_cpu_s": server_cpu_s,
        "client_cpu_s": 1.0,
        "latencies_s": [elapsed_s / batches] * batches,
    }


def rounds(*rates: int, concurrency: int = 1) -> list[list[dict[str, Any]]]:
    return [[figures(rate, concurrency=concurrency)] for rate in rates]


def test_medians_of_the_best_concurrency_are_shown():
    """An entry's figure is the median over the rounds at the concurrency where that is highest."""
    one, two = (10, 30, 20), (40, 15, 16)
    taken = [[figures(a), figures(b, concurrency=2)] for a, b in zip(one, two, strict=True)]

    found = summarise({MINE: taken}, {})

    loads = found["entries"][0]["loads"]
    assert [load["images_per_s"] for load in loads] == [20, 16]
    assert found["entries"][0]["best"] == loads[0]
    assert loads[1]["images_per_s_rounds"] == [40, 15, 16]
    assert loads[0]["batches"] == 60
    assert loads[0]["mb_per_s"] == pytest.approx(20 * 3 * 224 * 224 / 1e6, abs=0.1)
    assert loads[0]["server_cpu_s"] == pytest.approx(1 / 20)


@pytest.mark.parametrize(("rate", "is_within", "verdict"), [(160, True, "ok"), (159, False, "MISSED")])
def test_ours_is_compared_with_the_best_peer(rate: int, is_within: bool, verdict: str):
    """1.6 times the best setting of the best peer is enough; less is not."""
    found = summarise({MINE: rounds(rate), OTHER: rounds(100), SLOW: rounds(50)}, {})

    assert found["ratio"] == rate / 100
    assert found["best_peer"] == "KServe, as documented"
    assert found["is_within"] == is_within
    assert table(found).splitlines()[-1].endswith(f"limit 1.6: {verdict}")


@given(st.lists(st.tuples(st.integers(100, 999), st.integers(100, 999)), min_size=1, max_size=9), st.integers(1, 9))
def test_ratios_are_of_one_round(rates: Sequence[tuple[int, int]], slowdown: int):
    """A machine that is slower for a whole round changes no ratio of a round."""
    taken = {MINE: rounds(*(mine for mine, _ in rates)), OTHER: rounds(*(other for _, other in rates))}
    slower = {entry: [[{**first[0], "elapsed_s": 64.0 * slowdown}], *rest] for entry, (first, *rest) in taken.items()}

    ratios, ratios_of_slower = summarise(taken, {})["ratio_rounds"], summarise(slower, {})["ratio_rounds"]

    assert ratios_of_slower == pytest.approx(ratios, rel=0.02)  # images/s are rounded to tenths


def test_who_is_missing_is_named_with_the_reason():
    """A system without figures stands under the table; without any peer nothing was shown to be faster."""
    found = summarise({MINE: rounds(10)}, {OTHER: "not installed: no wheel"})

    lines = table(found).splitlines()
    assert lines[-2:] == ["KServe, as documented: not installed: no wheel", "no peer could be measured"]
    assert not found["is_within"]


def test_a_picture_is_drawn(tmp_path: Path):
    """The picture is a PNG, whatever was measured."""
    found = summarise({MINE: rounds(10), OTHER: rounds(5)}, {})

    draw_peers({**found, "machine": {"cpu": "one"}, "date": "2026-01-01T00:00:00"}, tmp_path / "peers.png")

    assert (tmp_path / "peers.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("system", [system for system in SYSTEMS if system.requirements], ids=lambda each: each.name)
def test_all_versions_are_pinned(system: System):
    """Each peer has scripts, and a file of exact versions without an index."""
    assert system.requirements
    versions = read_versions(system.requirements)

    assert versions
    assert all(number and number[0].isdigit() for number in versions.values())
    assert "://" not in system.requirements.read_text()
    assert (SCRIPTS / system.client).exists()
    assert Path(system.server[0]).exists()


def test_extras_are_no_part_of_a_name(tmp_path: Path):
    """`ray[serve-grpc]==2.60.0` is version 2.60.0 of ray."""
    requirements = tmp_path / "ray.txt"
    requirements.write_text("ray[serve-grpc]==2.60.0\nnumpy==2.4.6\n")

    assert read_versions(requirements) == {"ray": "2.60.0", "numpy": "2.4.6"}


@pytest.mark.slow
def test_an_environment_is_made_once(tmp_path: Path):
    """The second time the environment is there; other requirements make it anew."""
    requirements, folder = tmp_path / "empty.txt", tmp_path / "venvs"
    requirements.write_text("")

    python = open_venv(requirements, folder)
    made_s = python.lstat().st_mtime_ns
    again = open_venv(requirements, folder)
    kept_s = again.lstat().st_mtime_ns
    requirements.write_text("\n")
    anew_s = open_venv(requirements, folder).lstat().st_mtime_ns

    assert python == again == folder / "empty/bin/python"
    assert subprocess.run([python, "-c", ""], check=False).returncode == 0
    assert made_s == kept_s < anew_s


@pytest.mark.slow
def test_what_does_not_install_has_a_reason(tmp_path: Path):
    """pip's own sentence reaches the person, and nothing counts as installed."""
    requirements = tmp_path / "nothing.txt"
    requirements.write_text("--no-index\nno-such-package==1.0\n")

    for _ in range(2):
        with pytest.raises(NotInstalled, match=r"ERROR: .*no-such-package==1\.0.*nothing\.log"):
            open_venv(requirements, tmp_path / "venvs")


def command(out: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "samix", "bench", "peers", "--json", str(out), "--systems", OURS, *flags]


@pytest.mark.slow
def test_ours_is_measured(tmp_path: Path):
    """Our server is started and asked; the table, the figures and the picture are written, and nobody is left."""
    out = tmp_path / "new" / "peers.json"

    run = subprocess.run(
        command(out, "--seconds", "0.3", "--rounds", "1", "--concurrency", "1", "2"),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )

    assert run.returncode == 1, run.stderr  # there is nobody to be faster than
    assert "no peer could be measured" in run.stdout
    report = json.loads(out.read_text())
    assert {"date", "machine", "versions", "pinned", "settings"} <= report.keys()
    assert [each["concurrency"] for each in report["entries"][0]["loads"]] == [1, 2]
    assert report["entries"][0]["best"]["images_per_s"] > 0
    assert out.with_suffix(".png").read_bytes().startswith(PNG)
    assert survivors("", f"TMPDIR={tmp_path}") == {}


@pytest.mark.slow
def test_leaves_nobody_behind(tmp_path: Path):
    """SIGTERM in the middle of a turn ends server and client, and writes no figures."""
    out = tmp_path / "peers.json"
    bench = subprocess.Popen(command(out, "--seconds", "60"), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "peers-samix-as-it-is.log"
    deadline_s = time.monotonic() + LIMIT_S
    while not (log.exists() and "ready " in log.read_text()):
        assert time.monotonic() < deadline_s

    bench.send_signal(signal.SIGTERM)
    bench.communicate(timeout=LIMIT_S)

    assert bench.returncode == 130
    assert not out.exists()
    assert survivors(f"{SCRIPTS}/") == {}
    assert survivors("benchmarks.constant_server") == {}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
        (["--seconds", "0"], "seconds must be above 0 and at most 60, got 0"),
        (["--concurrency", "0"], "concurrency must be numbers in 1..64, got (0,)"),
        (["--systems", "Triton"], "systems must be among samix, PyTriton, KServe, Ray Serve, LitServe, got 'Triton'"),
        (["--json", "figures.txt"], "json must name a file that ends in .json, got 'figures.txt'"),
    ],
)
def test_refuses_bad_flags(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """A flag out of bounds is refused with a sentence and status 2, before anything starts."""
    status = main(flags)

    assert status == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
