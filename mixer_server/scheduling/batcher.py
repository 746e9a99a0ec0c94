"""Decides which requests are computed together, and which are refused; knows queues and clocks, not pixels.

Whose turn it is, is scheduling's business. Here requests are taken in, wait, and leave: in a group, or because nobody
waits for them any more, or because a full queue has a better use for their place.
"""

import heapq
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from mixer_server.limits import check_seconds
from mixer_server.scheduling.fair_queue import FairQueue
from mixer_server.scheduling.job import Job
from mixer_server.scheduling.pace import Pace
from samix.errors import ConfigError, MixerError, MixerOverloaded, MixerTimeout, MixerUnavailable

SHUTTING_DOWN = "server is shutting down"

_MIN_STALE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """How requests are grouped."""

    max_images: int = 64
    """Requests are computed together up to so many images; a larger request goes alone. Large passes are slower on a
    CPU, raise it on a large GPU."""
    preferred_images: tuple[int, ...] = ()
    """Sizes, in images, at which a pass is cut where whole requests add up to one, and for which nobody waits for more
    company; for mixers that are compiled or captured at these sizes."""
    max_attention_mib: int = 1024
    """Most memory for the attention scores of one pass, in MiB: 4 n^2 bytes for an image of n tokens. Their softmax
    takes as much again. Large images make smaller passes."""
    max_queue_images: int = 4096
    """Most images that wait; requests beyond are refused with a hint when to come again. Eight trainers with four
    batches of 64 in flight keep 2048 waiting. One client may fill it, but its newest requests give way to others."""
    max_queue_delay_s: float = 0.0
    """Longest a request waits for company, in seconds, while the engine is idle; 0 groups only what waits anyway.
    Raise it where small requests come from many callers."""

    def __post_init__(self) -> None:
        if self.max_attention_mib < 1:
            raise ConfigError(f"batching.max-attention-mib must be at least 1, got {self.max_attention_mib}")
        if self.max_images < 1:
            raise ConfigError(f"batching.max-images must be at least 1, got {self.max_images}; 1 groups nothing")
        for size in self.preferred_images:
            if not 1 <= size <= self.max_images:
                raise ConfigError(
                    f"batching.preferred-images must lie in 1..batching.max-images ({self.max_images}), got {size}"
                )
        if self.max_queue_delay_s != 0:  # which never waits
            check_seconds("batching.max-queue-delay-s", self.max_queue_delay_s)


class Batcher:
    """A bounded queue that hands out groups. Many threads submit, one of each lane takes."""

    def __init__(
        self, config: BatchingConfig, clock: Callable[[], float] = time.monotonic, *, num_lanes: int = 1
    ) -> None:
        self.clock = clock
        """Seconds, in which deadlines are given."""
        self.num_lanes = num_lanes
        """How many groups are computed at once."""
        self._config = config
        self._queue = FairQueue(config.max_images, frozenset(config.preferred_images))
        self._deadlines: list[tuple[float, int]] = []  # a heap of times and numbers, also of jobs that have left
        self._changed = threading.Condition()
        self._is_closed = False
        self._pace = Pace(num_lanes)

    @property
    def num_requests(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def num_images(self) -> int:
        """Images that wait."""
        return self._queue.num_images

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels that wait."""
        return self._queue.num_bytes

    @property
    def num_clients(self) -> int:
        """Clients whose requests wait; one that waits at two priorities counts twice."""
        return self._queue.num_clients

    def max_pass_images(self, tokens: int) -> int:
        """Count how many images of so many tokens fit into the memory of a pass; 0 if not even one does."""
        return (self._config.max_attention_mib << 20) // (4 * tokens**2)

    def retry_after_s(self) -> float:
        """Estimate when the queue will have been worked off, at the pace of recent passes."""
        return self._pace.retry_after_s(self._queue.work)

    def submit(self, job: Job) -> None:
        """Accept a job; `job.answer` gets its outcome, MixerOverloaded if it has to give way later.

        Raises:
            MixerOverloaded: if the queue has no room.
            MixerUnavailable: after `close`.
        """
        with self._exclusive() as gone:
            if self._is_closed:
                raise MixerUnavailable(SHUTTING_DOWN)
            if self._queue.num_images + job.num_images > self._config.max_queue_images:
                gone += self._make_room(job)
            job.arrived_s = self.clock()
            self._queue.add(job)
            self._watch_deadline(job)
            if self._changes_plans(job):
                self._changed.notify_all()
        # By number: a callback that held the job would make a cycle, and pixels wait for the garbage collector.
        job.answer.add_done_callback(partial(self._note_done, job.number))

    def next_group(self, lane: int = 0) -> list[Job]:
        """Wait for the next group; empty once the batcher is closed and everything accepted was handed out."""
        with self._changed:
            self._pace.end(self.clock(), lane)  # whoever asks for the next group has finished the one before
        while True:
            with self._exclusive() as gone:
                decision = self._decide(lane)
                if isinstance(decision, list):
                    return decision
                if not gone:  # they are told first
                    self._changed.wait(None if math.isinf(decision) else decision)

    def decide(self, lane: int = 0) -> list[Job] | float:
        """Cut the group that is due now, or say in how many seconds to ask again (infinity: when something comes)."""
        with self._exclusive():
            return self._decide(lane)

    def close(self) -> None:
        """Accept nothing more; what was accepted is handed out without waiting for company."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @contextmanager
    def _exclusive(self) -> Iterator[list[tuple[Job, MixerError]]]:
        """Hold the lock, without those whose deadline has passed; yields who is gone, to be told why after it.

        After it, because whoever listens to an answer may need a lock of its own, under which it submits elsewhere.
        """
        gone: list[tuple[Job, MixerError]] = []
        try:
            with self._changed:
                gone += self._expire()
                yield gone
        finally:
            for job, error in gone:
                job.settle(error)

    def _decide(self, lane: int) -> list[Job] | float:
        queue = self._queue
        if not queue:
            return [] if self._is_closed else math.inf
        patience_s = queue.oldest.arrived_s + self._config.max_queue_delay_s - self.clock()
        if patience_s <= 0 or self._is_closed:
            group = queue.cut()
        elif full := queue.full_keys():
            group = queue.cut(full)
        else:
            return min(patience_s, self._next_deadline()[0] - self.clock())
        self._pace.begin(group, self.clock(), lane)
        return group

    def _make_room(self, job: Job) -> list[tuple[Job, MixerError]]:
        waiting, most = self._queue.num_images, self._config.max_queue_images
        lacking = waiting + job.num_images - most
        leaving: list[Job] = []
        for other in self._queue.giving_way_to(job):
            leaving.append(other)
            lacking -= other.num_images
            if lacking <= 0:
                break
        else:
            raise MixerOverloaded(
                f"queue is full: {waiting} of at most {most} images wait, no room for {job.num_images} more",
                self.retry_after_s(),
            )
        for other in leaving:
            self._queue.remove(other.number)
        sentence = f"queue is full: {waiting} of at most {most} images wait, and this request gave way to another's"
        return [(other, MixerOverloaded(sentence, self.retry_after_s())) for other in leaving]

    def _changes_plans(self, job: Job) -> bool:
        """Say whether whoever waits for a group has to think again: it may be due now, or sooner than it was."""
        return (
            self._config.max_queue_delay_s == 0  # whatever comes is due
            or self._next_deadline()[1] == job.number  # also that of the only one
            or self._queue.fills_pass(job.key)
        )

    def _note_done(self, number: int, answer: Future) -> None:
        if answer.cancelled():
            with self._changed:
                self._queue.remove(number)

    def _watch_deadline(self, job: Job) -> None:
        # Most leave long before their deadline: what they leave here is swept out before it outweighs the others.
        if len(self._deadlines) > 2 * len(self._queue) + _MIN_STALE:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._queue]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (job.deadline_s, job.number))

    def _next_deadline(self) -> tuple[float, int]:
        while self._deadlines[0][1] not in self._queue:
            heapq.heappop(self._deadlines)
        return self._deadlines[0]

    def _expire(self) -> list[tuple[Job, MixerError]]:
        expired: list[tuple[Job, MixerError]] = []
        now_s = self.clock()
        while self._deadlines and self._deadlines[0][0] <= now_s:
            job = self._queue.remove(heapq.heappop(self._deadlines)[1])
            if job:
                expired.append((job, MixerTimeout("the deadline passed while the request waited in the queue")))
        return expired
