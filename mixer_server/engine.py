"""The thread that computes: takes groups from the batcher, runs them, answers and counts."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from mixer_server.batcher import Batcher
from mixer_server.job import Job
from mixer_server.metrics import MixerMetrics
from mixer_server.passes import Outcome, run_pass
from mixer_server.registry import Registry
from samix.errors import ArtefactError, MixerBroken
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall

log = logging.getLogger(__name__)


class Engine:
    """Computes until its batcher is closed and empty."""

    def __init__(self, batcher: Batcher, registry: Registry, metrics: MixerMetrics) -> None:
        self._batcher = batcher
        self._registry = registry
        self._metrics = metrics
        # A daemon, so that a pass that never ends cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start computing."""
        self._thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until all that the batcher accepted is answered; False if it takes longer than `timeout_s`."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while group := self._batcher.next_group():
            try:
                self._compute(group)
            except Exception:
                log.exception("pass_failed", extra={"key": group[0].key, "requests": len(group)})
                for job in group:
                    job.settle(MixerBroken("the mixer failed on this batch; the server's log has the reason"))

    def _compute(self, group: Sequence[Job]) -> None:
        started_s = self._batcher.clock()
        mixer = self._registry.find(group[0].key.mixer, group[0].key.version)
        with self._metrics.time_stage("compute"):
            outcomes = run_pass(mixer, [job.call for job in group])
        self._metrics.batches.labels(mixer.name, mixer.version).inc()
        self._metrics.batch_size.observe(sum(job.num_images for job in group))
        for job, outcome in zip(group, outcomes, strict=True):
            self._metrics.stage_duration.labels("queue").observe(started_s - job.arrived_s)
            self._answer(mixer, job, outcome)

    def _answer(self, mixer: FrozenMixer, job: Job, outcome: Outcome) -> None:
        if outcome.num_nonfinite:
            self._metrics.nonfinite_masks.labels(mixer.name).inc(outcome.num_nonfinite)
            job.settle(_broken(mixer))
            return
        mode = "images" if job.call.wants_images else "mask_logits"
        self._metrics.images.labels(mixer.name, mixer.version, mode).inc(job.num_images)
        self._metrics.lambda_error.labels(mixer.name).observe(outcome.lambda_error)
        job.settle(outcome.reply)


def warm_up(mixer: FrozenMixer, side: int) -> None:
    """Mix a pair of grey squares, so that the first real request meets a mixer that has run before.

    Args:
        mixer: what to warm.
        side: side of the squares, in pixels.

    Raises:
        BadBatch: if the mixer does not take images of that size.
        ArtefactError: if its masks are not numbers.
    """
    call = MixCall(
        mixer=mixer.name,
        pixels=np.full((2, 3, side, side), 128, np.uint8),
        lam=np.full(2, 0.5, np.float32),
        partner=np.array([1, 0]),
        wants_images=True,
    )
    if run_pass(mixer, [call])[0].num_nonfinite:
        raise ArtefactError(f"mixer {mixer.name!r} makes masks that are not numbers; train or export it again")


def _broken(mixer: FrozenMixer) -> MixerBroken:
    return MixerBroken(f"mixer {mixer.name!r} made masks that are not numbers; its weights may be damaged")
