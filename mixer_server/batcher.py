"""Decides which requests are computed together, and which are refused; knows queues and clocks, not pixels.

Requests of one group key leave in the order they came. Between keys the one that has waited longest goes first once its
patience is over, so that a rare image size is not starved by a common one.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from mixer_server.job import GroupKey, Job
from mixer_server.limits import check_seconds
from samix.errors import ConfigError, MixerOverloaded, MixerTimeout, MixerUnavailable

SHUTTING_DOWN = "server is shutting down"

_RETRY_AFTER_S = (0.05, 5.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchingConfig:
    """How requests are grouped."""

    max_images: int = 64
    """Requests are computed together up to so many images; a larger request goes alone. Large passes are slower on a
    CPU, raise it on a large GPU."""
    max_attention_mib: int = 1024
    """Most memory for the attention scores of one pass, in MiB: 4 n^2 bytes for an image of n tokens. Their softmax
    takes as much again. Large images make smaller passes."""
    max_queue_images: int = 4096
    """Most images that wait; requests beyond are refused with a hint when to come again. Eight trainers with four
    batches of 64 in flight keep 2048 waiting."""
    max_queue_delay_s: float = 0.0
    """Longest a request waits for company, in seconds, while the engine is idle; 0 groups only what waits anyway.
    Raise it where small requests come from many callers."""

    def __post_init__(self) -> None:
        if self.max_attention_mib < 1:
            raise ConfigError(f"batching.max-attention-mib must be at least 1, got {self.max_attention_mib}")
        if self.max_images < 1:
            raise ConfigError(f"batching.max-images must be at least 1, got {self.max_images}; 1 groups nothing")
        if self.max_queue_delay_s != 0:  # which never waits
            check_seconds("batching.max-queue-delay-s", self.max_queue_delay_s)


class Batcher:
    """A bounded queue that hands out groups. Many threads submit, one takes."""

    def __init__(self, config: BatchingConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        """Seconds, in which deadlines are given."""
        self._config = config
        self._queues: dict[GroupKey, deque[Job]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._taken_s = 0.0
        self._taken_images = 0
        self._pace_s = 0.0  # seconds per image of the latest pass

    @property
    def num_requests(self) -> int:
        """Requests that wait."""
        with self._changed:
            return sum(len(queue) for queue in self._queues.values())

    @property
    def num_images(self) -> int:
        """Images that wait."""
        with self._changed:
            return self._count_images()

    @property
    def num_bytes(self) -> int:
        """Bytes of pixels that wait."""
        with self._changed:
            return sum(job.call.pixels.nbytes for queue in self._queues.values() for job in queue)

    def max_pass_images(self, tokens: int) -> int:
        """Count how many images of so many tokens fit into the memory of a pass; 0 if not even one does."""
        return (self._config.max_attention_mib << 20) // (4 * tokens**2)

    def retry_after_s(self) -> float:
        """Estimate when the queue will have room: its length at the pace of the latest pass."""
        with self._changed:
            return self._estimate_wait()

    def submit(self, job: Job) -> None:
        """Accept a job; `job.answer` gets its outcome.

        Raises:
            MixerOverloaded: if the queue has no room.
            MixerUnavailable: after `close`.
        """
        with self._changed:
            if self._is_closed:
                raise MixerUnavailable(SHUTTING_DOWN)
            self._drop_dead()
            waiting = self._count_images()
            if waiting + job.num_images > self._config.max_queue_images:
                raise MixerOverloaded(
                    f"queue is full: {waiting} of at most {self._config.max_queue_images} images wait, "
                    f"no room for {job.num_images} more",
                    self._estimate_wait(),
                )
            job.arrived_s = self.clock()
            self._queues.setdefault(job.key, deque()).append(job)
            self._changed.notify_all()

    def next_group(self) -> list[Job]:
        """Wait for the next group; empty once the batcher is closed and everything accepted was handed out."""
        with self._changed:
            self._note_pace()
            while True:
                decision = self.decide()
                if isinstance(decision, list):
                    return decision
                self._changed.wait(None if math.isinf(decision) else decision)

    def decide(self) -> list[Job] | float:
        """Cut the group that is due now, or say in how many seconds one will be (infinity: when something comes)."""
        with self._changed:
            self._drop_dead()
            if not self._queues:
                return [] if self._is_closed else math.inf
            oldest = min(self._queues, key=lambda key: self._queues[key][0].arrived_s)
            patience_s = self._queues[oldest][0].arrived_s + self._config.max_queue_delay_s - self.clock()
            if patience_s <= 0 or self._is_closed:
                return self._cut(oldest)
            for key, queue in self._queues.items():
                if sum(job.num_images for job in queue) >= self._limit(queue[0]):
                    return self._cut(key)
            return patience_s

    def close(self) -> None:
        """Accept nothing more; what was accepted is handed out without waiting for company."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _cut(self, key: GroupKey) -> list[Job]:
        queue = self._queues[key]
        group = [queue.popleft()]
        num_images = group[0].num_images
        while queue and num_images + queue[0].num_images <= self._limit(group[0]):
            num_images += queue[0].num_images
            group.append(queue.popleft())
        if not queue:
            del self._queues[key]
        self._taken_s, self._taken_images = self.clock(), num_images
        return group

    def _limit(self, job: Job) -> int:
        return min(job.max_pass_images, self._config.max_images)

    def _drop_dead(self) -> None:
        now = self.clock()
        for key, queue in list(self._queues.items()):
            alive = deque(job for job in queue if not job.answer.cancelled() and job.deadline_s > now)
            for job in queue:
                if not job.answer.cancelled() and job.deadline_s <= now:
                    job.settle(MixerTimeout("the deadline passed while the request waited in the queue"))
            if alive:
                self._queues[key] = alive
            else:
                del self._queues[key]

    def _note_pace(self) -> None:
        if self._taken_images:  # whoever asks for the next group has finished the one before
            self._pace_s = (self.clock() - self._taken_s) / self._taken_images
            self._taken_images = 0

    def _estimate_wait(self) -> float:
        shortest, longest = _RETRY_AFTER_S
        return min(max(self._count_images() * self._pace_s, shortest), longest)

    def _count_images(self) -> int:
        return sum(job.num_images for queue in self._queues.values() for job in queue)
