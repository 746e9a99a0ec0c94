"""What the server counted over the last minutes: a ring of readings of its own metrics."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.metrics import MetricWrapperBase

from mixer_server.datasets.metrics import DatasetMetrics
from mixer_server.metrics import STAGES, MixerMetrics
from mixer_server.status.snapshot import Traffic
from services.metrics import SECONDS_BUCKETS

log = logging.getLogger(__name__)

PERIOD_S = 5.0
"""Time between two readings."""
NUM_PERIODS = 60
"""That are kept."""
_NOW_S = 10.0
_LATELY_S = 60.0

_MIXING = frozenset({"Mix", "MixStream", "ModelInfer"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Counters at one moment, since the start."""

    at_s: float
    """When, on the clock of the history."""
    images: float = 0
    """Images mixed."""
    answered: float = 0
    """Requests to mix that were answered with a mix."""
    refused: float = 0
    """Those that were not."""
    received_bytes: float = 0
    """Of all messages."""
    sent_bytes: float = 0
    """Of all messages."""
    passes: float = 0
    """Computed."""
    pass_images: float = 0
    """Images of these."""
    latency: tuple[float, ...] = (0.0,) * (len(SECONDS_BUCKETS) + 1)
    """Requests to mix, by `SECONDS_BUCKETS` up to which they took; those of each bucket are in the next as well."""
    stages: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Of each stage the seconds spent in it, and how often that was."""
    datasets: Mapping[str, float] = field(default_factory=dict)
    """Images sent of each dataset."""


class History:
    """Reads the counters every few seconds on a thread of its own. `start`, then `close`."""

    def __init__(self, read: Callable[[float], Reading], clock: Callable[[], float] = time.monotonic) -> None:
        """Keep readings.

        Args:
            read: reads the counters, at the time it is given.
            clock: seconds.
        """
        self._read = read
        self._clock = clock
        self._readings: deque[Reading] = deque(maxlen=NUM_PERIODS + 1)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status-history", daemon=True)

    def start(self) -> None:
        """Take the first reading, and go on."""
        self.take()
        self._thread.start()

    def close(self) -> None:
        """Stop reading."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def take(self) -> None:
        """Add a reading to the ring; the oldest goes where it is full."""
        self._readings.append(self._read(self._clock()))

    def traffic(self) -> Traffic:
        """Say what has happened up to now."""
        now, readings = self._read(self._clock()), list(self._readings)
        return summarise([*readings, now] if not readings or now.at_s > readings[-1].at_s else readings)

    def _run(self) -> None:
        while not self._ended.wait(PERIOD_S):
            self.take()


def summarise(readings: list[Reading]) -> Traffic:
    """Make rates and sums of readings, of which the last was taken just now.

    Args:
        readings: at least one, oldest first.
    """
    now = readings[-1]
    then, before = _since(readings, _NOW_S), _since(readings, _LATELY_S)
    elapsed_s = max(now.at_s - then.at_s, 1e-9)

    def rate(end: float, start: float) -> float:
        return max(0.0, end - start) / elapsed_s  # a mixer that was unloaded takes its counters along

    pairs = pairwise(readings)
    history = [max(0.0, b.images - a.images) / (b.at_s - a.at_s) for a, b in pairs if b.at_s - a.at_s > PERIOD_S / 2]
    cumulative = [max(0.0, end - start) for end, start in zip(now.latency, before.latency, strict=True)]
    return Traffic(
        images_per_s=rate(now.images, then.images),
        answers_per_s=rate(now.answered, then.answered),
        refusals_per_s=rate(now.refused, then.refused),
        received_bytes_per_s=rate(now.received_bytes, then.received_bytes),
        sent_bytes_per_s=rate(now.sent_bytes, then.sent_bytes),
        history=history[-NUM_PERIODS:],
        latency=[max(0.0, b - a) for a, b in zip([0.0, *cumulative], cumulative, strict=False)],
        stages={stage: _spent(stage, now, before) for stage in STAGES},
        passes=max(0.0, now.passes - before.passes),
        pass_images=max(0.0, now.pass_images - before.pass_images),
        lately_s=now.at_s - before.at_s,
        dataset_images_per_s={name: rate(count, then.datasets.get(name, 0.0)) for name, count in now.datasets.items()},
    )


def read_metrics(metrics: MixerMetrics, datasets: DatasetMetrics | None, at_s: float) -> Reading:
    """Read the counters of a server."""
    mixing = [(labels, value) for labels, value in _samples(metrics.requests, "_total") if labels["method"] in _MIXING]
    sums, counts = (_by_stage(metrics.stage_duration, suffix) for suffix in ("_sum", "_count"))
    return Reading(
        at_s=at_s,
        images=_sum(metrics.images, "_total"),
        answered=sum(value for labels, value in mixing if labels["code"] == "OK"),
        refused=sum(value for labels, value in mixing if labels["code"] != "OK"),
        received_bytes=_sum(metrics.received_bytes, "_total"),
        sent_bytes=_sum(metrics.sent_bytes, "_total")
        + (_sum(datasets.sent_bytes, "_total") if datasets is not None else 0.0),
        passes=_sum(metrics.batches, "_total"),
        pass_images=_sum(metrics.batch_size, "_sum"),
        latency=_latency(metrics.request_duration),
        stages={stage: (sums.get(stage, 0.0), counts.get(stage, 0.0)) for stage in STAGES},
        datasets={} if datasets is None else by_dataset(datasets.images, "_total"),
    )


def by_dataset(family: MetricWrapperBase, suffix: str = "") -> dict[str, float]:
    """Read a family with one series for each dataset."""
    return {labels["dataset"]: value for labels, value in _samples(family, suffix)}


def value_of(gauge: MetricWrapperBase) -> float:
    """Read a family of one series."""
    return _sum(gauge, "")


def _samples(family: MetricWrapperBase, suffix: str) -> list[tuple[Mapping[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for metric in family.collect()
        for sample in metric.samples
        if sample.name == metric.name + suffix
    ]


def _sum(family: MetricWrapperBase, suffix: str) -> float:
    return sum(value for _, value in _samples(family, suffix))


def _by_stage(family: MetricWrapperBase, suffix: str) -> dict[str, float]:
    return {labels["stage"]: value for labels, value in _samples(family, suffix)}


def _latency(family: MetricWrapperBase) -> tuple[float, ...]:
    bounds = [*map(float, SECONDS_BUCKETS), float("inf")]
    counts = dict.fromkeys(bounds, 0.0)
    for labels, value in _samples(family, "_bucket"):
        if labels["method"] in _MIXING:
            counts[float(labels["le"])] += value
    return tuple(counts[bound] for bound in bounds)


def _since(readings: list[Reading], span_s: float) -> Reading:
    """Find the youngest reading that is at least so old, else the oldest."""
    now_s = readings[-1].at_s
    old = [reading for reading in readings if now_s - reading.at_s >= span_s]
    return old[-1] if old else readings[0]


def _spent(stage: str, now: Reading, before: Reading) -> tuple[float, float]:
    seconds, count = now.stages.get(stage, (0.0, 0.0))
    seconds_before, count_before = before.stages.get(stage, (0.0, 0.0))
    return max(0.0, seconds - seconds_before), max(0.0, count - count_before)
