"""The threads that compute: one for each lane, until there is nothing more to compute or no way to."""

import logging
import threading
import time
from collections.abc import Callable, Iterable

import numpy as np

from mixer_server.engine.lane import Lane, OnAnswer
from mixer_server.engine.passes import Passes
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.job import Job
from samix.errors import ArtefactError, MixerBroken
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall

log = logging.getLogger(__name__)


class Engine:
    """Computes until its batcher is closed and empty. Lanes take groups from it as they come free."""

    def __init__(
        self,
        batcher: Batcher,
        passes: Passes,
        metrics: MixerMetrics,
        on_death: Callable[[], None] = lambda: None,
        on_answer: OnAnswer = lambda _job, _outcome: None,
    ) -> None:
        """Compute what a batcher hands out, in as many lanes as it hands out to.

        Args:
            batcher: closed by whoever stops the server, and by an engine that dies.
            passes: compute.
            metrics: count.
            on_death: called once, when nothing more will be computed although the server goes on.
            on_answer: told of each request that is about to be answered, by any lane's thread.
        """
        self._batcher = batcher
        self._on_death = on_death
        self._lock = threading.Lock()
        self._is_dead = False
        lanes = [
            Lane(number, batcher=batcher, passes=passes, metrics=metrics, on_answer=on_answer)
            for number in range(batcher.num_lanes)
        ]
        # Daemons, so that a pass that never ends cannot keep the process from exiting.
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"engine-{number}", daemon=True)
            for number, lane in enumerate(lanes)
        ]

    def start(self) -> None:
        """Start computing."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> bool:
        """Wait until all that the batcher accepted is answered; False if it takes longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self, lane: Lane) -> None:
        try:
            while lane.step():
                pass
        except BaseException:  # nobody joins a thread for its error, and callers would wait for their deadlines
            log.critical("engine_died", exc_info=True)
            self._die(lane)

    def _die(self, lane: Lane) -> None:
        """Leave no caller waiting, and take no more work."""
        self._batcher.close()
        _refuse(lane.abandon())
        while group := self._batcher.next_group():
            _refuse(group)
        with self._lock:
            is_first, self._is_dead = not self._is_dead, True
        if is_first:
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


def _refuse(jobs: Iterable[Job]) -> None:
    for job in jobs:
        job.settle(MixerBroken("this server's engine has died; the server's log has the reason"))
