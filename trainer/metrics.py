"""What one rank tells Prometheus. Every family carries the rank, so that pages of one run can be summed."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from samix.client.retrying import RetryReason
from samix.errors import ConfigError
from services.metrics import SECONDS_BUCKETS, make_registry
from services.shards.dataset import Batch

_LAST_FIRST_PORT = 65_000
"""Leaves numbers for the other ranks of a machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsConfig:
    """The page for Prometheus."""

    host: str = "127.0.0.1"
    """Address it is served on; 0.0.0.0 for other machines."""
    port: int = 8010
    """Port of local rank 0; rank r of a machine takes the r-th after it. 0 takes free ones."""
    advertise: str = ""
    """Name or address under which Prometheus reaches this machine, for the list of pages that rank 0 writes. Empty: the
    host, or where that is all networks, this machine's address on the network of its default route. On several machines
    set it on each by the environment."""
    targets_folder: Path | None = None
    """Folder for lists of pages that runs share, such as a volume that Prometheus reads: rank 0 keeps the run's pages
    listed in it as RUN.json, RUN being the last part of --out. Runs that last at the same time need different names."""
    linger_s: float = 60.0
    """How long the page stays after the summary, so that the last values are scraped, seconds."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= _LAST_FIRST_PORT:
            raise ConfigError(f"metrics.port must lie in 0..{_LAST_FIRST_PORT}, got {self.port}; 0 takes a free one")
        if not 0 <= self.linger_s < math.inf:
            raise ConfigError(f"metrics.linger_s must be at least 0, got {self.linger_s}; 0 does not linger")
        if not _is_host(self.advertise):
            raise ConfigError(
                f"metrics.advertise must be a name or an address alone, got {self.advertise!r}; the port is added"
            )


class TrainerMetrics:
    """The families of one rank; also what the mixer's client reports to (`ClientObserver`)."""

    def __init__(self, rank: int) -> None:
        self.registry: CollectorRegistry = make_registry()
        self._rank = str(rank)
        self.images = self._counter("trainer_images_total", "Images trained on.")
        self.steps = self._counter("trainer_steps_total", "Optimiser steps.")
        self.fallbacks = self._counter("mixer_client_fallback_total", "Batches mixed by the fallback policy.")
        self.loss = self._gauge("trainer_loss", "Loss of the last step.")
        self.lr = self._gauge("trainer_learning_rate", "Learning rate of the last step.")
        self.epoch = self._gauge("trainer_epoch", "Epochs that are done.")
        self.epochs = self._gauge("trainer_epochs", "Epochs there will be.")
        self.eta = self._gauge("trainer_eta_seconds", "Time the rest of the run takes at the present pace.")
        self.accuracy = self._gauge("trainer_accuracy_ratio", "Top-1 accuracy of the last evaluation.")
        self.waited_s = 0.0
        """Sum of all waits so far."""
        self._wait = self._histogram("mixer_client_wait_seconds", "Time a step waited for its mixed batch.")
        self._data_wait = self._histogram(
            "trainer_data_wait_seconds", "Time blocked waiting for the loader's next batch."
        )
        self._skipped = self._counter("trainer_skipped_samples_total", "Unreadable samples that others stand in for.")
        self._checkpoints = self._counter("trainer_checkpoints_total", "Checkpoints written.")
        self._checkpoint_duration = self._gauge("trainer_checkpoint_seconds", "Time the last checkpoint took to write.")
        self.step_duration = self._histogram("trainer_step_duration_seconds", "Time from one step to the next.")
        self._latency = self._histogram("mixer_client_request_duration_seconds", "Time from request to answer.")
        self._sent = self._counter("mixer_client_sent_bytes_total", "Bytes of requests, retries included.")
        self.in_flight = self._gauge("mixer_client_in_flight_bytes", "Bytes of requests that wait for their answers.")
        self._received = self._counter("mixer_client_received_bytes_total", "Bytes of answers.")
        self._hedges = self._counter("mixer_client_hedges_total", "Requests sent to a second replica as well.")
        self._weights_sent = self._counter("mixer_client_weights_sent_total", "Sets of weights that a session took.")
        self._weights_bytes = self._counter("mixer_client_weights_sent_bytes_total", "Bytes of them.")
        self._weights_failed = self._counter(
            "mixer_client_weights_failed_total", "Sets of weights that did not arrive, and were sent again."
        )
        self._weights_duration = self._histogram("mixer_client_weights_duration_seconds", "Time one set took.")
        self._rejoins = self._counter("mixer_client_session_rejoins_total", "Times a session was joined again.")
        self._lost_steps = self._counter(
            "mixer_client_session_lost_steps_total", "Steps of a mixer's learning that went with its server."
        )
        retries = Counter(
            "mixer_client_retries_total", "Requests sent again.", ["rank", "reason"], registry=self.registry
        )
        self._retries: dict[RetryReason, Counter] = {
            reason: retries.labels(self._rank, reason) for reason in get_args(RetryReason)
        }

    def waited(self, seconds: float) -> None:
        """Note how long a step was blocked waiting for its mixed batch."""
        self.waited_s += seconds
        self._wait.observe(seconds)

    def loaded(self, batches: Iterable[Batch], clock: Callable[[], float] = time.perf_counter) -> Iterator[Batch]:
        """Pass on the loader's batches; note how long each was waited for and what was skipped in it."""
        started = clock()
        for batch in batches:
            self._data_wait.observe(clock() - started)
            self._skipped.inc(len(batch.skipped))
            yield batch
            started = clock()

    def checkpoint_saved(self, seconds: float) -> None:
        """Count a checkpoint, and note how long it took to write."""
        self._checkpoints.inc()
        self._checkpoint_duration.set(seconds)

    def sent(self, num_bytes: int) -> None:
        """Count a request."""
        self._sent.inc(num_bytes)

    def received(self, num_bytes: int, seconds: float) -> None:
        """Count an answer."""
        self._received.inc(num_bytes)
        self._latency.observe(seconds)

    def weights_sent(self, num_bytes: int, seconds: float) -> None:
        """Count weights that a session took."""
        self._weights_sent.inc()
        self._weights_bytes.inc(num_bytes)
        self._weights_duration.observe(seconds)

    def weights_failed(self) -> None:
        """Count weights that did not arrive."""
        self._weights_failed.inc()

    def reconnected(self, lost_steps: int) -> None:
        """Count that a session was joined again, and what it had lost."""
        self._rejoins.inc()
        self._lost_steps.inc(lost_steps)

    def retried(self, reason: RetryReason) -> None:
        """Count a retry."""
        self._retries[reason].inc()

    def hedged(self) -> None:
        """Count a hedge."""
        self._hedges.inc()

    def value(self, family: str) -> float:
        """Sum the samples of one counter or gauge of this rank, for summaries."""
        samples = (sample for metric in self.registry.collect() for sample in metric.samples)
        return sum(sample.value for sample in samples if sample.name == family)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["rank"], registry=self.registry).labels(self._rank)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, ["rank"], registry=self.registry).labels(self._rank)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ["rank"], registry=self.registry, buckets=SECONDS_BUCKETS).labels(self._rank)


def _is_host(text: str) -> bool:
    has_port = text.count(":") == 1  # an IPv6 address has more
    return not has_port and all(sign.isascii() and (sign.isalnum() or sign in ".-_:%") for sign in text)
