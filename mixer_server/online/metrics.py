"""What co-training counts. Sessions are named by their trainers, but are few, and their series go when they do."""

import threading
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from mixer_server.online.agenda import Closed
from mixer_server.online.learner import Mixed
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.render import upsample_masks

if TYPE_CHECKING:
    from mixer_server.online.session import Session

_STEPS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_NUM_BINS = 10
BINS = tuple(f"{number / _NUM_BINS:.1f}" for number in range(_NUM_BINS))
"""Lower ends of the bins of lam."""
_LOOK_EVERY = 10
"""Steps between two looks at masks for their curve: it costs an upsampling."""


class SessionMetrics:
    """The families of `OnlineService`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry, buckets=_STEPS)
        session = ["session"]
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self.sessions = gauge("mixer_online_sessions", "Co-training sessions in memory.")
        self.sessions.set_function(lambda: len(self._sessions))
        self.memory = gauge("mixer_online_memory_bytes", "Memory that sessions hold.")
        self.step = gauge("mixer_online_step", "Steps that a session's mixer has learned or passed over.", session)
        self.ranks = gauge("mixer_online_ranks", "Ranks that are connected.", session)
        self.loss = gauge("mixer_online_loss", "Loss of the last step, by part.", [*session, "part"])
        self.lam_error = gauge(
            "mixer_online_lambda_error_ratio", "Distance of a mask's mean from its lambda, last step.", session
        )
        self.spread = gauge("mixer_online_mask_spread_ratio", "Spatial deviation of masks, last step.", session)
        self.staleness = histogram(
            "mixer_online_staleness_steps", "Steps by which the mixer lagged behind a batch it mixed.", session
        )
        self.weights_lag = histogram(
            "mixer_online_weights_lag_steps", "Steps by which weights lagged behind a batch that was mixed.", session
        )
        self.weights_age = gauge("mixer_weights_age_seconds", "Time since the newest weights came.", session)
        self.weights_updates = counter("mixer_weights_updates", "Times the momentum copy followed.", session)
        self.received_bytes = counter("mixer_online_received_bytes", "Bytes received, by kind.", [*session, "kind"])
        self.sent_bytes = counter("mixer_online_sent_bytes", "Bytes of answers sent.", session)
        self.steps = counter(
            "mixer_online_steps",
            "Steps by outcome: learned from all ranks, from some (partial), or passed over (skipped).",
            [*session, "outcome"],
        )
        self.late_batches = counter("mixer_online_late_batches", "Batches mixed after their step was over.", session)
        self.refused = counter("mixer_online_refused", "Batches and weights refused, by status code.", ["code"])
        self.checkpoint_step = gauge("mixer_online_checkpoint_step", "Step of the newest checkpoint.", session)
        self.checkpoints = counter("mixer_online_checkpoints", "Checkpoints, by outcome.", [*session, "outcome"])
        self.restored = counter("mixer_online_restored", "Sessions taken up again from their checkpoint.")
        self.reaped = counter("mixer_online_reaped", "Sessions that left memory because nobody used them.")
        curve = [*session, "lam"]
        self.mask_mean = counter("mixer_online_mask_mean_sum", "Means of masks, added up, by lam from this on.", curve)
        self.masks = counter("mixer_online_masks", "Masks that were added up, by lam from this on.", curve)

    def watch(self, session: "Session") -> None:
        """Begin to tell of a session."""
        with self._lock:
            self._sessions.add(session)
        name = session.name
        self.weights_age.labels(name).set_function(lambda: session.weights_age_s)
        self.step.labels(name).set_function(lambda: session.next_step)
        self.ranks.labels(name).set_function(lambda: len(session.ranks))
        self.checkpoint_step.labels(name).set_function(lambda: session.checkpoint_step)
        self.weights_updates.labels(name)
        for outcome in ("learned", "partial", "skipped"):
            self.steps.labels(name, outcome)

    def forget(self, session: "Session") -> None:
        """Drop the series of a session that leaves."""
        with self._lock:
            self._sessions.discard(session)
        for family in [value for value in vars(self).values() if isinstance(value, MetricWrapperBase)]:
            samples = [sample.labels for metric in family.collect() for sample in metric.samples]
            for labels in samples:
                if labels.get("session") == session.name:
                    family.remove(*(value for name, value in labels.items() if name != "le"))  # of a bucket

    def mixed(self, session: "Session", mixed: Mixed, staleness: int, weights_lag: int) -> None:
        """Count a batch that was mixed, and look at its masks now and then."""
        self.staleness.labels(session.name).observe(staleness)
        self.weights_lag.labels(session.name).observe(weights_lag)
        if mixed.call.step % _LOOK_EVERY == 0:
            self._add_to_curve(session, mixed)

    def late(self, session: "Session") -> None:
        """Count a batch of a step that is over."""
        self.late_batches.labels(session.name).inc()

    def followed(self, session: "Session") -> None:
        """Count weights."""
        self.weights_updates.labels(session.name).inc()

    def closed(self, session: "Session", closed: Closed, losses: pb.OnlineLosses | None) -> None:
        """Count a step that is over."""
        name, is_whole = session.name, closed.num_batches >= session.settings.world_size
        outcome = ("learned" if is_whole else "partial") if closed.num_batches else "skipped"
        self.steps.labels(name, outcome).inc(closed.num_steps)
        if losses is not None:
            self.loss.labels(name, "classification").set(losses.classification)
            self.loss.labels(name, "mask").set(losses.mask)
            self.lam_error.labels(name).set(losses.lam_error)
            self.spread.labels(name).set(losses.spread)

    def checkpoint_saved(self, session: "Session") -> None:
        """Count a checkpoint."""
        self.checkpoints.labels(session.name, "written").inc()

    def checkpoint_failed(self, session: "Session") -> None:
        """Count a checkpoint that could not be written."""
        self.checkpoints.labels(session.name, "failed").inc()

    def _add_to_curve(self, session: "Session", mixed: Mixed) -> None:
        side = mixed.call.images.shape[2:]
        means = upsample_masks(mixed.logits, (side[0], side[1]), session.settings.mixer.rendering.upsampling).mean(
            dim=(1, 2, 3)
        )
        for lam, mean in zip(mixed.call.plans.students.lam.tolist(), means.tolist(), strict=True):
            bin_ = BINS[min(int(lam * _NUM_BINS), _NUM_BINS - 1)]
            self.mask_mean.labels(session.name, bin_).inc(mean)
            self.masks.labels(session.name, bin_).inc()
