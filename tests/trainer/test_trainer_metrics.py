"""What one rank tells Prometheus."""

import shutil
import subprocess
from dataclasses import replace
from urllib.request import urlopen

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from training import make_batch, page_value

from samix.errors import ConfigError
from services.metrics import serve_metrics
from services.shards.skips import SkippedSample
from trainer.metrics import MetricsConfig, TrainerMetrics


@pytest.fixture
def metrics() -> TrainerMetrics:
    """Return the metrics of rank 3 after some work."""
    found = TrainerMetrics(3)
    found.images.inc(64)
    found.steps.inc()
    found.sent(1000)
    found.received(392, 0.02)
    found.retried("unavailable")
    found.retried("overloaded")
    found.retried("unavailable")
    found.waited(0.5)
    found.checkpoint_saved(3.0)
    found.checkpoint_saved(2.0)
    found.epochs.set(100)
    found.eta.set(3600)
    return found


def test_page_tells_what_was_counted(metrics: TrainerMetrics):
    """The page that is served parses, and its counters are those of the work."""
    server = serve_metrics(metrics.registry, "127.0.0.1", 0)
    with urlopen(f"http://127.0.0.1:{server.port}/metrics") as answer:
        page = answer.read().decode()
    server.close()

    expected = {
        "trainer_images_total": 64,
        "trainer_steps_total": 1,
        "mixer_client_sent_bytes_total": 1000,
        "mixer_client_received_bytes_total": 392,
        "mixer_client_retries_total": 3,
        "mixer_client_fallback_total": 0,
        "mixer_client_wait_seconds_sum": 0.5,
        "trainer_checkpoints_total": 2,
        "trainer_checkpoint_seconds": 2,
        "trainer_epochs": 100,
        "trainer_eta_seconds": 3600,
        "mixer_client_request_duration_seconds_count": 1,
    }
    assert {family: page_value(page, family) for family in expected} == expected
    assert {family: metrics.value(family) for family in expected} == expected


def test_waiting_for_the_loader():
    """Every batch passes; its wait counts, not the time in which it was used, and what was skipped in it."""
    metrics, clock = TrainerMetrics(0), iter([0.0, 0.25, 10.0, 10.5])
    skipped = replace(make_batch(), skipped=(SkippedSample(3, "it is no picture"), SkippedSample(5, "nor this")))
    batches = [make_batch(), skipped]

    passed = list(metrics.loaded(batches, clock=lambda: next(clock, 0.0)))

    page = generate_latest(metrics.registry).decode()
    assert passed == batches
    assert page_value(page, "trainer_data_wait_seconds_sum") == 0.75
    assert page_value(page, "trainer_data_wait_seconds_count") == 2
    assert page_value(page, "trainer_skipped_samples_total") == 2


def test_every_family_carries_the_rank(metrics: TrainerMetrics):
    """Every sample of the trainer and its client names the rank, so that pages of one run can be summed."""
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())

    own = [f for f in families if f.name.startswith(("trainer_", "mixer_"))]
    assert len(own) >= 12
    assert {sample.labels.get("rank") for family in own for sample in family.samples} == {"3"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_page(metrics: TrainerMetrics):
    """Names, units and help texts follow the rules that promtool checks."""
    page = generate_latest(metrics.registry)

    check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)

    assert (check.returncode, check.stdout, check.stderr) == (0, b"", b"")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"port": -1}, "metrics.port must lie in 0..65000, got -1"),
        ({"port": 70_000}, "metrics.port must lie in 0..65000, got 70000"),
        ({"advertise": "node-7:8010"}, "metrics.advertise must be a name or an address alone, got 'node-7:8010'"),
        ({"advertise": "http//node"}, "metrics.advertise must be a name or an address alone, got 'http//node'"),
        ({"linger_s": -1.0}, "metrics.linger_s must be at least 0, got -1.0"),
    ],
)
def test_refuses(settings: dict, sentence: str):
    """A port or a time that cannot be is refused with its value."""
    with pytest.raises(ConfigError, match=sentence):
        MetricsConfig(**settings)
