"""The thread that computes: takes groups from the batcher, launches their passes, answers and counts."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mixer_server.engine.answers import Outcome
from mixer_server.engine.passes import DeviceLost, Passes, Running
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.job import Job
from samix.errors import ArtefactError, MixerBroken
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Launched:
    """A group whose pass is under way."""

    group: Sequence[Job]
    running: Running
    started_s: float


class Engine:
    """Computes until its batcher is closed and empty.

    While a pass is under way the next is launched, if the passes allow it and a group is due; they end in their order.
    A request that comes while the engine waits for a pass is launched when that has ended, so only a queue that does
    not run dry keeps a GPU busy all the time.
    """

    def __init__(
        self,
        batcher: Batcher,
        passes: Passes,
        metrics: MixerMetrics,
        on_death: Callable[[], None] = lambda: None,
        on_answer: Callable[[Job, Outcome], None] = lambda _job, _outcome: None,
    ) -> None:
        """Compute what a batcher hands out.

        Args:
            batcher: closed by whoever stops the server, and by an engine that dies.
            passes: compute.
            metrics: count.
            on_death: called when nothing more will be computed although the server goes on.
            on_answer: told of each request that is about to be answered, while its pixels are still there; must be
                quick and raise nothing.
        """
        self._batcher = batcher
        self._passes = passes
        self._metrics = metrics
        self._on_death = on_death
        self._on_answer = on_answer
        self._launched: deque[_Launched] = deque()
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
        try:
            while self._step():
                pass
        except BaseException:  # nobody joins a thread for its error, and callers would wait for their deadlines
            log.critical("engine_died", exc_info=True)
            self._die()

    def _step(self) -> bool:
        """Launch a pass if one is due, and finish the oldest if there is no better to do; False at the end."""
        group = self._next_group()
        if not group and not self._launched:
            return False
        if group:
            self._try(self._launch, group)
        if self._launched and (not group or len(self._launched) >= self._passes.depth):
            self._try(self._finish, self._launched[0].group)
            self._launched.popleft()
        return True

    def _next_group(self) -> Sequence[Job]:
        if not self._launched:
            return self._batcher.next_group()
        due = self._batcher.decide()
        return due if isinstance(due, list) else []

    def _try(self, work: Callable[[Sequence[Job]], None], group: Sequence[Job]) -> None:
        try:
            work(group)
        except Exception as error:
            clients = ",".join(sorted({job.client for job in group}))
            log.exception("pass_failed", extra={"key": group[0].key, "requests": len(group), "clients": clients})
            for job in group:
                job.settle(MixerBroken("the mixer failed on this batch; the server's log has the reason"))
            if isinstance(error, DeviceLost):
                raise

    def _launch(self, group: Sequence[Job]) -> None:
        started_s = self._batcher.clock()
        running = self._passes.launch(group[0].mixer, [job.call for job in group])
        self._launched.append(_Launched(group=group, running=running, started_s=started_s))
        for job in group:
            job.started_s = started_s
            self._metrics.stages["queue"].observe(started_s - job.arrived_s)

    def _finish(self, group: Sequence[Job]) -> None:
        mixer, oldest = group[0].mixer, self._launched[0]
        outcomes = oldest.running.finish()
        self._metrics.stages["compute"].observe(self._batcher.clock() - oldest.started_s)
        self._metrics.batches.labels(mixer.name, mixer.version).inc()
        self._metrics.batch_size.observe(sum(job.num_images for job in group))
        for job, outcome in zip(group, outcomes, strict=True):
            self._answer(mixer, job, outcome)

    def _answer(self, mixer: FrozenMixer, job: Job, outcome: Outcome) -> None:
        if outcome.num_nonfinite:
            self._metrics.nonfinite_masks.labels(mixer.name).inc(outcome.num_nonfinite)
            job.settle(_broken(mixer))
            return
        mode = "images" if job.call.wants_images else "mask_logits"
        self._metrics.images.labels(mixer.name, mixer.version, mode).inc(job.num_images)
        self._metrics.lambda_error.labels(mixer.name).observe(outcome.lambda_error)
        self._on_answer(job, outcome)
        job.settle(outcome.reply)

    def _die(self) -> None:
        """Leave no caller waiting, and take no more work."""
        self._batcher.close()
        while self._launched:
            _abandon(self._launched.popleft().group)
        while group := self._batcher.next_group():
            _abandon(group)
        self._on_death()


def warm_up(passes: Passes, mixer: FrozenMixer, side: int) -> None:
    """Mix a pair of grey squares, so that the first real request meets a mixer that has run before.

    Args:
        passes: that will compute the real requests.
        mixer: what to warm.
        side: side of the squares, in pixels.

    Raises:
        BadBatch: if the mixer does not take images of that size.
        ArtefactError: if its masks are not numbers.
    """
    mixer.spec.check_size(side, side)
    passes.warm(mixer, side)
    call = MixCall(
        mixer=mixer.name,
        pixels=np.full((2, 3, side, side), 128, np.uint8),
        lam=np.full(2, 0.5, np.float32),
        partner=np.array([1, 0]),
        wants_images=True,
    )
    (outcome,) = passes.launch(mixer, [passes.prepare(mixer, call)]).finish()
    if outcome.num_nonfinite:
        raise ArtefactError(f"mixer {mixer.name!r} makes masks that are not numbers; train or export it again")


def _broken(mixer: FrozenMixer) -> MixerBroken:
    return MixerBroken(f"mixer {mixer.name!r} made masks that are not numbers; its weights may be damaged")


def _abandon(group: Sequence[Job]) -> None:
    for job in group:
        job.settle(MixerBroken("this server's engine has died; the server's log has the reason"))
