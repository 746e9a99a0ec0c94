import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mixer_server.workers.worker_metrics import WorkerMetrics


def page_of(requests: float, label: str = "x") -> str:
    """What one worker shows."""
    registry = CollectorRegistry()
    Counter("mixer_requests", "Calls.", ["code"], registry=registry).labels(label).inc(requests)
    Gauge("process_resident_memory_bytes", "Memory.", registry=registry).set(5)
    Histogram("mixer_seconds", "Time.", registry=registry, buckets=(1, 2)).observe(1.5)
    return generate_latest(registry).decode()


def page(metrics: WorkerMetrics) -> str:
    return generate_latest(metrics.registry).decode()


def samples_of(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@given(
    st.dictionaries(st.integers(0, 3), st.tuples(st.floats(0, 1e300), st.text(max_size=8).filter(str.isprintable))),
)
def test_every_series_of_every_worker(values: dict[int, tuple[float, str]]):
    """The merged page holds each worker's series, unchanged but for its number, and each family is described once."""
    pages = {index: page_of(*value) for index, value in values.items()}
    expected = {
        (name, labels | {("worker", str(index))}): value
        for index, text in pages.items()
        for (name, labels), value in samples_of(text).items()
    }

    merged = page(WorkerMetrics(4, lambda: pages))

    assert expected.items() <= samples_of(merged).items()
    described = re.findall(r"^# TYPE (\S+)", merged, re.MULTILINE)
    assert len(described) == len(set(described))


def test_workers_that_do_not_answer_are_counted():
    """The page says how many workers there are and how many answered; the parent's own process has no number."""
    merged = samples_of(page(WorkerMetrics(3, lambda: {1: page_of(7)})))

    assert merged["mixer_workers", frozenset()] == 3
    assert merged["mixer_workers_up", frozenset()] == 1
    assert merged["mixer_requests_total", frozenset({("code", "x"), ("worker", "1")})] == 7
    assert merged["process_resident_memory_bytes", frozenset()] > 0
    assert merged["process_resident_memory_bytes", frozenset({("worker", "1")})] == 5


def test_a_page_that_cannot_be_read_is_left_out(caplog: pytest.LogCaptureFixture):
    """A worker whose page is no metrics page counts as one that does not answer."""
    with caplog.at_level(logging.WARNING):
        merged = samples_of(page(WorkerMetrics(2, lambda: {0: page_of(1), 1: "mixer_requests{ nonsense"})))

    assert merged["mixer_workers_up", frozenset()] == 1
    assert "worker_page_unreadable" in caplog.messages


def test_restarts_are_counted_from_zero():
    """Every worker's restarts are there from the start."""
    metrics = WorkerMetrics(2, dict)
    metrics.restarts.labels(1).inc()

    merged = samples_of(page(metrics))

    counts = [merged["mixer_worker_restarts_total", frozenset({("worker", index)})] for index in ("0", "1")]
    assert counts == [0, 1]
