"""Alerts of a real Prometheus become pending, fire and resolve while a real server, or a rank, gets into trouble.

Minutes are seconds here: Prometheus looks five times a second, at the rules with all their times shortened.
"""

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from framing import whole
from prometheus_server import Prometheus, running_prometheus
from serving import WAIT_S, Gate, connect, random_call, serve, tiny_mixer, wait_until
from training import ALONE

from mixer_server.front.request_config import RequestConfig
from mixer_server.scheduling.batcher import BatchingConfig
from samix.wire import encode_request
from services.metrics import serve_metrics
from trainer.discovery import announce_pages
from trainer.metrics import MetricsConfig, TrainerMetrics

MAX_IMAGES = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt install prometheus"),
]


@pytest.fixture
def small_queue() -> dict[str, Any]:
    """Settings of a server whose queue three requests of MAX_IMAGES fill."""
    batching = BatchingConfig(max_images=MAX_IMAGES, max_queue_images=3 * MAX_IMAGES)
    return {"batching": batching, "requests": RequestConfig(max_images=MAX_IMAGES)}


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[TrainerMetrics]:
    """What rank 0 of a run that is not done tells Prometheus."""
    metrics = TrainerMetrics(0)
    metrics.epochs.set(100)
    out = tmp_path / "runs/train"
    out.mkdir(parents=True)
    with (
        closing(serve_metrics(metrics.registry, "127.0.0.1", 0)) as page,
        announce_pages(out, "train", MetricsConfig(), page.port, ALONE),
    ):
        yield metrics


def states(prometheus: Prometheus, alert: str) -> set[str]:
    """Say whether an alert is pending or firing now."""
    return {series["metric"]["alertstate"] for series in prometheus.ask(f'ALERTS{{alertname="{alert}"}}')}


def assert_alarm(
    prometheus: Prometheus,
    alert: str,
    trouble: Callable[[], object] = bool,
    expected: Collection[str] = ("pending", "firing"),
) -> None:
    """Wait until an alert is firing, while `trouble` is made again and again, and compare its states until then."""
    seen: set[str] = set()

    def is_firing() -> bool:
        trouble()
        seen.update(states(prometheus, alert))
        return "firing" in seen

    wait_until(is_firing)
    assert seen == set(expected)


def assert_all_clear(prometheus: Prometheus, alert: str, life: Callable[[], object] = bool) -> None:
    """Wait until an alert is neither pending nor firing, while `life` goes on."""

    def is_over() -> bool:
        life()
        return not states(prometheus, alert)

    wait_until(is_over)


def test_server_that_stops(tmp_path: Path):
    """MixerDown fires when a server is gone, and resolves when one listens there again."""
    with ExitStack() as first:
        address = first.enter_context(serve(tiny_mixer())).addresses["metrics"]
        with running_prometheus(tmp_path, [address], is_hasty=True) as prometheus:
            wait_until(lambda: prometheus.value('up{job="samix-mixer"}') == 1)
            assert_all_clear(prometheus, "MixerDown")

            first.close()

            assert_alarm(prometheus, "MixerDown")
            with serve(tiny_mixer(), metrics_port=int(address.rpartition(":")[2])):
                assert_all_clear(prometheus, "MixerDown")


def test_queue_that_is_full(tmp_path: Path, small_queue: dict[str, Any]):
    """MixerQueueFull fires while passes do not end, and resolves when the queue was worked off."""
    mixer = tiny_mixer()
    gate = Gate(mixer)
    message = whole(encode_request(random_call(MAX_IMAGES)))
    with (
        serve(mixer, **small_queue) as server,
        connect(server.addresses["grpc"]) as stub,
        running_prometheus(tmp_path, [server.addresses["metrics"]], is_hasty=True) as prometheus,
    ):
        gate.shut()
        held = stub.Mix.future(message, timeout=WAIT_S)
        gate.wait_until_held()
        waiting = [stub.Mix.future(message, timeout=WAIT_S) for _ in range(3)]

        assert_alarm(prometheus, "MixerQueueFull")
        gate.open()
        assert all(call.result(WAIT_S) for call in (held, *waiting))
        assert_all_clear(prometheus, "MixerQueueFull")


def test_rank_that_starves(tmp_path: Path, rank: TrainerMetrics):
    """WaitShareHigh fires while a rank waits for its batches, and resolves when it steps without waiting."""

    def step(waited_s: float) -> None:
        rank.steps.inc()
        rank.waited(waited_s)

    with running_prometheus(tmp_path, [], is_hasty=True) as prometheus:
        assert_alarm(prometheus, "WaitShareHigh", lambda: step(0.1))
        assert_all_clear(prometheus, "WaitShareHigh", lambda: step(0.0))


def test_fallbacks(tmp_path: Path, rank: TrainerMetrics):
    """FallbacksBurnFast fires at once while the fallback mixes, and resolves when the mixer does again."""

    def fall_back() -> None:
        rank.waited(0.0)
        rank.fallbacks.inc()

    with running_prometheus(tmp_path, [], is_hasty=True) as prometheus:
        assert_alarm(prometheus, "FallbacksBurnFast", fall_back, expected={"firing"})
        assert_all_clear(prometheus, "FallbacksBurnFast", lambda: rank.waited(0.0))


def test_rank_that_is_silent(tmp_path: Path):
    """RankSilent fires when a listed page does not answer, and resolves with the end of the list."""
    out = tmp_path / "runs/train"
    out.mkdir(parents=True)
    page = serve_metrics(TrainerMetrics(0).registry, "127.0.0.1", 0)
    with running_prometheus(tmp_path, [], is_hasty=True) as prometheus:
        with announce_pages(out, "train", MetricsConfig(), page.port, ALONE):
            wait_until(lambda: prometheus.value('up{job="samix-trainer"}') == 1)

            page.close()

            assert_alarm(prometheus, "RankSilent")
        assert_all_clear(prometheus, "RankSilent")
