"""A training run and its server, traced: spans of two processes make one trace, and lines of both name one request."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from otlp_receiver import Collector, attributes_of, collecting
from serving import serve, tiny_mixer
from training import write_pictures

from services.tracing import TracingConfig

RUN_S = 100.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * RUN_S)]


def train(folder: Path, endpoint: str, collector: Collector, *flags: str) -> list[dict]:
    """Run `samix train` in a process of its own; returns its log."""
    data = ["--data.train", write_pictures(folder / "train.tar", 128)]
    data += ["--data.val", write_pictures(folder / "val.tar", 30)]
    page = ["--metrics.port", "0", "--metrics.linger-s", "0"]
    mixing = ["--mixing.endpoint", endpoint, "--tracing.endpoint", collector.endpoint, "--log-format", "json"]
    mixing += ["--mixing.deadline-s", str(RUN_S)]  # a busy machine is no reason to fall back
    out = ["--epochs", "1", "--out", str(folder / "run")]
    run = subprocess.run(
        [sys.executable, "-m", "trainer", "digits_cpu", "--device", "cpu", *data, *page, *mixing, *out, *flags],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
        env={**os.environ, "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stderr.splitlines()]


def test_two_processes_make_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each mix of the trainer is a span, below which lies the server's; both programs say who they are."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with collecting() as collector:
        with serve(tiny_mixer(), tracing=TracingConfig(endpoint=collector.endpoint)) as server:
            log = train(tmp_path, server.addresses["grpc"], collector)
        mixes, served = collector.named("mix"), collector.named("MixStream")

    by_id = {span.span_id: span for span in mixes}
    assert len(mixes) == len(served) == 2
    for span in served:
        above = by_id[span.parent_span_id]
        assert (above.trace_id, attributes_of(above)["samix.request"]) == (
            span.trace_id,
            attributes_of(span)["samix.request"],
        )
    assert {resource["service.name"] for resource in collector.resources} == {"samix-trainer", "samix-mixer"}
    assert {line["rank"] for line in log} == {0}


def test_a_run_whose_collector_is_gone_trains_as_ever(tmp_path: Path):
    """A run whose spans nobody takes mixes each batch as asked, and ends."""
    with serve(tiny_mixer()) as server:
        log = train(tmp_path, server.addresses["grpc"], Collector(port=9))

    [done] = [line for line in log if line["event"] == "done"]
    assert done["fallbacks"] == 0
