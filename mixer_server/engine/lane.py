"""One lane of the engine: takes groups from the batcher in turn, launches their passes, answers and counts."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixer_server.engine.answers import Outcome
from mixer_server.engine.passes import DeviceLost, Passes, Running
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.job import Job
from samix.errors import MixerBroken
from samix.mixing.frozen import FrozenMixer

log = logging.getLogger(__name__)

OnAnswer = Callable[[Job, Outcome], None]
"""Told of each request that is about to be answered, while its pixels are still there; quick, and raises nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Launched:
    """A group whose pass is under way."""

    group: Sequence[Job]
    running: Running
    started_s: float


class Lane:
    """Passes that end in the order in which they began; for one thread.

    While a pass is under way the next is launched, if the passes allow it and a group is due. A request that comes
    while the lane waits for a pass is launched when that has ended, so only a queue that does not run dry keeps a GPU
    busy all the time.
    """

    def __init__(
        self, number: int, *, batcher: Batcher, passes: Passes, metrics: MixerMetrics, on_answer: OnAnswer
    ) -> None:
        self._number = number
        self._batcher = batcher
        self._passes = passes
        self._metrics = metrics
        self._on_answer = on_answer
        self._launched: deque[_Launched] = deque()

    def step(self) -> bool:
        """Launch a pass if one is due, and finish the oldest if there is no better to do; False at the end.

        Raises:
            DeviceLost: if nothing more can be computed.
        """
        group = self._next_group()
        if not group and not self._launched:
            return False
        if group:
            self._try(self._launch, group)
        if self._launched and (not group or len(self._launched) >= self._passes.depth):
            self._try(self._finish, self._launched[0].group)
            self._launched.popleft()
        return True

    def abandon(self) -> list[Job]:
        """Give up what is under way; answers the requests that nobody will answer now."""
        jobs = [job for launched in self._launched for job in launched.group]
        self._launched.clear()
        return jobs

    def _next_group(self) -> Sequence[Job]:
        if not self._launched:
            return self._batcher.next_group(self._number)
        due = self._batcher.decide(self._number)
        return due if isinstance(due, list) else []

    def _try(self, work: Callable[[Sequence[Job]], None], group: Sequence[Job]) -> None:
        try:
            work(group)
        except Exception as error:
            clients = ",".join(sorted({job.client for job in group}))
            request = ",".join(job.request for job in group)
            fields = {"group": group[0].key, "requests": len(group), "clients": clients, "request": request}
            log.exception("pass_failed", extra=fields)
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
        ended_s = self._batcher.clock()
        self._metrics.stages["compute"].observe(ended_s - oldest.started_s)
        self._metrics.batches.labels(mixer.name, mixer.version).inc()
        self._metrics.batch_size.observe(sum(job.num_images for job in group))
        for job, outcome in zip(group, outcomes, strict=True):
            job.ended_s = ended_s
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


def _broken(mixer: FrozenMixer) -> MixerBroken:
    return MixerBroken(f"mixer {mixer.name!r} made masks that are not numbers; its weights may be damaged")
