"""`samix bench dataset`: what it computes, what it refuses, and what it leaves behind."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.dataset import main
from benchmarks.dataset_report import MixingRound, StreamRound, is_met, summarise_mixing, summarise_streams, table
from benchmarks.dataset_shards import write_shard
from benchmarks.dataset_systems import TF_DATA
from benchmarks.peer_venvs import read_versions
from benchmarks.raw_sockets import measure_raw_stream, raw_server
from services.shards.index import open_shards

ROOT = Path(__file__).parents[2]
OURS, PEER, OTHER = "samix", "tf.data service, as documented", "tf.data service, malloc tuned"
BATCH_BYTES = 1_000_000


def figures(batches: int, *, concurrency: int = 1) -> dict[str, Any]:
    """Make a measurement of one second."""
    return {
        "concurrency": concurrency,
        "batches": batches,
        "elapsed_s": 1.0,
        "server_cpu_s": 0.5,
        "client_cpu_s": 0.25,
        "latencies_s": [1 / batches] * batches,
    }


def streams(*rates: tuple[int, int, int], raw_s: float = 0.01) -> list[StreamRound]:
    """Make rounds of ours, the peer and its other setting, by their batches a second."""
    return [
        StreamRound(raw_s=raw_s, figures={OURS: [figures(a)], PEER: [figures(b)], OTHER: [figures(c)]})
        for a, b, c in rates
    ]


@pytest.mark.parametrize(("rate", "ratio", "met"), [(50, 0.5, True), (49, 0.49, False)])
def test_ours_is_compared_with_a_raw_stream(rate: int, ratio: float, met: bool):
    """Half of what bare sockets move is enough; less is not."""
    found = summarise_streams(OURS, BATCH_BYTES, streams((rate, 1, 1)), {})

    assert found["of_raw"]["ratio"] == pytest.approx(ratio)
    assert found["of_raw"]["is_met"] is met
    assert found["raw_mb_per_s"] == 100.0


@pytest.mark.parametrize(("rate", "met"), [(60, True), (59, False)])
def test_ours_is_compared_with_the_best_setting_of_the_peer(rate: int, met: bool):
    """1.2 times the best setting of tf.data service is enough; less is not."""
    found = summarise_streams(OURS, BATCH_BYTES, streams((rate, 40, 50)), {})

    assert found["of_peer"]["peer"] == OTHER
    assert found["of_peer"]["ratio"] == pytest.approx(rate / 50)
    assert found["of_peer"]["is_met"] is met


def test_the_best_number_of_consumers_counts():
    """Each stream is shown with the number of consumers that took most, by the median of the rounds."""
    both = [figures(10), figures(20, concurrency=2)]
    rounds = [StreamRound(raw_s=0.01, figures={OURS: both})] * 2

    (stream,) = summarise_streams(OURS, BATCH_BYTES, rounds, {})["streams"]

    assert (stream["consumers"], stream["batches_per_s"], stream["mb_per_s"]) == (2, 20, 20.0)
    assert (stream["server_cpu_ms"], stream["client_cpu_ms"]) == (25.0, 12.5)


@given(st.lists(st.tuples(st.integers(1, 999), st.integers(1, 999)), min_size=1, max_size=5), st.integers(1, 9))
def test_ratios_are_of_one_round(rates: Sequence[tuple[int, int]], slowdown: int):
    """A machine that is slower for a whole round changes no ratio of a round."""
    rounds = [StreamRound(raw_s=0.01, figures={OURS: [figures(a)], PEER: [figures(b)]}) for a, b in rates]
    first = rounds[0]
    slow = {name: [{**turns[0], "elapsed_s": 1.0 * slowdown}] for name, turns in first.figures.items()}
    slower = [StreamRound(raw_s=0.01 * slowdown, figures=slow), *rounds[1:]]

    found, again = (summarise_streams(OURS, BATCH_BYTES, each, {}) for each in (rounds, slower))

    for name in ("of_raw", "of_peer"):
        assert again[name]["ratio_rounds"] == pytest.approx(found[name]["ratio_rounds"], rel=0.05, abs=0.05)


@pytest.mark.parametrize(("served", "met"), [((90.0, 10.0), True), ((89.0, 10.0), False)])
def test_the_best_settings_are_compared_with_each_other(served: tuple[float, float], met: bool):
    """Mixed batches from a server reach nine tenths of the loop in one process, each at its best."""
    one = MixingRound(loop={"a": 100.0, "b": 50.0}, served=dict(zip("ab", served, strict=True)))

    found = summarise_mixing("r18", [one, one])

    assert found["of_loop"]["ratio"] == served[0] / 100
    assert found["of_loop"]["is_met"] is met
    assert is_met({"mixing": [found]}) is met


def test_a_limit_without_a_peer_is_not_met():
    """Where tf.data service could not be measured, nothing was shown to be faster, and the reason stands there."""
    rounds = [StreamRound(raw_s=0.01, figures={OURS: [figures(99)]})]
    report = {"streams": summarise_streams(OURS, BATCH_BYTES, rounds, {PEER: "not installed: no wheel"})}

    assert not is_met(report)
    assert f"{PEER}: not installed: no wheel" in table(report)
    assert "no peer could be measured" in table(report)


def test_the_table_holds_every_verdict():
    """The table names each stream and setting, and whether each limit is kept."""
    mixing = summarise_mixing("r18", [MixingRound(loop={"1 thread": 100.0}, served={"1 thread": 95.0})])
    report = {"streams": summarise_streams(OURS, BATCH_BYTES, streams((60, 40, 50)), {}), "mixing": [mixing]}

    lines = table(report).splitlines()

    assert [line for line in lines if "limit" in line] == [
        "ours 0.600 (in single rounds 0.600 to 0.600; limit 0.5: ok) of raw TCP",
        f"ours 1.200 (in single rounds 1.200 to 1.200; limit 1.2: ok) times {OTHER}",
        "served 0.950 (in single rounds 0.950 to 0.950; limit 0.9: ok) of the loop in one process",
    ]
    assert is_met(report)


def test_a_raw_stream_is_measured(tmp_path: Path):
    """Bytes stream one way from the raw server, without a wait between them."""
    with raw_server(tmp_path, None) as raw:
        batch_s = measure_raw_stream(raw["tcp"], BATCH_BYTES, 0.05)

    assert 0 < batch_s < 1


def test_made_shards_can_be_read(tmp_path: Path):
    """A made shard has as many samples as it was asked for, each under a key of its own."""
    write_shard(tmp_path / "made.tar", 100, 32)

    assert open_shards(str(tmp_path / "made.tar")).total == 100


def test_versions_are_pinned():
    """The peer's file names exact versions, and no index."""
    assert TF_DATA.requirements
    versions = read_versions(TF_DATA.requirements)

    assert {"tensorflow-cpu", "numpy"} <= versions.keys()
    assert all(number[0].isdigit() for number in versions.values())
    assert "://" not in TF_DATA.requirements.read_text()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--rounds", "0"], "rounds must lie in 1..99, got 0"),
        (["--seconds", "0"], "seconds must be above 0 and at most 60, got 0.0"),
        (["--consumers", "0"], "consumers must be numbers in 1..16, got (0,)"),
        (["--pictures", "64"], "pictures must lie in 256..65536, got 64"),
        (["--json", "figures.txt"], "json must name a file that ends in .json, got 'figures.txt'"),
    ],
)
def test_bad_flags_are_refused(flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]):
    """A flag that cannot be is refused with its value."""
    assert main(flags) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ours_is_measured(tmp_path: Path):
    """Servers are started, streams and mixing are measured, and table and figures are written, without the peer."""
    out = tmp_path / "new" / "dataset.json"
    flags = ["--rounds", "1", "--seconds", "0.2", "--consumers", "1", "--pictures", "256", "--no-peers"]
    command = [sys.executable, "-m", "samix", "bench", "dataset", "--json", str(out), *flags]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)

    assert run.returncode == 1, run.stderr  # there is nobody to be faster than
    assert "a limit was missed" in run.stderr
    assert "round 1 of 1: unmixed" in run.stdout
    report = json.loads(out.read_text())
    assert {"date", "machine", "versions", "pinned", "settings", "peer_versions"} <= report.keys()
    assert report["streams"]["streams"][0]["batches_per_s"] > 0
    assert report["streams"]["of_raw"]["ratio"] > 0
    assert report["mixing"][0]["of_loop"]["ratio"] > 0
