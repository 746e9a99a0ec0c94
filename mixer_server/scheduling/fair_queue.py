"""Whose turn it is among the requests that wait: plain data, without threads or clocks.

Priorities are strict: whatever a higher one leaves goes to the next, which may be nothing. Nobody waits for ever, since
every request has a deadline, and a share for LOW would slow everyone's training by as much. Within a priority clients
take turns; a name that is used once always goes first, so clients must be named by something that they cannot make up.
"""

from collections import OrderedDict
from collections.abc import Iterator, Set
from dataclasses import dataclass

from mixer_server.scheduling.job import GroupKey, Job
from mixer_server.scheduling.turns import Turns
from samix.mixer.v1 import mixer_pb2 as pb

PRIORITIES = (pb.PRIORITY_HIGH, pb.PRIORITY_NORMAL, pb.PRIORITY_LOW)
"""First to last."""


@dataclass(kw_only=True, slots=True)
class _Lane:
    """How much of one group key waits."""

    most: int
    """Images that fit into a pass."""
    num_images: int = 0
    """Images that wait."""


class FairQueue:
    """The requests that wait. Adding or removing one takes constant time, cutting a group as much as clients wait."""

    def __init__(self, max_images: int, preferred_images: Set[int] = frozenset()) -> None:
        self.num_images = 0
        """Images that wait."""
        self.num_bytes = 0
        """Bytes of pixels that wait."""
        self.work = 0
        """Pixels that wait."""
        self._max_images = max_images
        self._preferred_images = preferred_images
        self._num_added = 0
        self._turns: dict[int, Turns] = {priority: Turns() for priority in PRIORITIES}
        self._lanes: dict[GroupKey, _Lane] = {}
        self._jobs: OrderedDict[int, Job] = OrderedDict()

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, number: int) -> bool:
        return number in self._jobs

    @property
    def num_clients(self) -> int:
        """Clients whose requests wait; one that waits at two priorities counts twice."""
        return sum(turns.num_clients for turns in self._turns.values())

    @property
    def oldest(self) -> Job:
        """The request that has waited longest; there must be one."""
        return next(iter(self._jobs.values()))

    def add(self, job: Job) -> None:
        """Let a request wait; gives it its number."""
        job.number = self._num_added
        self._num_added += 1
        self._jobs[job.number] = job
        self._turns[job.priority].add(job)
        if job.key not in self._lanes:
            self._lanes[job.key] = _Lane(most=min(job.max_pass_images, self._max_images))
        self._count(job, 1)

    def remove(self, number: int) -> Job | None:
        """Let the request of that number go, and return it; None if it waits no longer."""
        job = self._jobs.pop(number, None)
        if job is None:
            return None
        self._turns[job.priority].remove(job)
        self._count(job, -1)
        if not self._lanes[job.key].num_images:
            del self._lanes[job.key]
        return job

    def fills_pass(self, key: GroupKey) -> bool:
        """Say whether the requests of a key fill a pass, or together make one of a preferred size."""
        lane = self._lanes[key]
        return lane.num_images >= lane.most or lane.num_images in self._preferred_images

    def full_keys(self) -> set[GroupKey]:
        """List the keys whose requests fill a pass."""
        return {key for key in self._lanes if self.fills_pass(key)}

    def cut(self, keys: Set[GroupKey] = frozenset()) -> list[Job]:
        """Take out the group that is computed next; something must wait.

        The request that has the turn takes along those of its key that fit, by turns, but none while one of a higher
        priority would stay behind. Where the first of these make a pass of a preferred size, the others stay.

        Args:
            keys: those to prefer among the requests of the highest priority.
        """
        key = next(turns for turns in self._turns.values() if turns.num_requests).next_key(keys)
        group: list[Job] = []
        num_images = num_preferred = 0
        for job in self._in_turn(key):
            num_images += job.num_images
            if group and num_images > self._lanes[key].most:
                break
            group.append(job)
            if num_images in self._preferred_images:
                num_preferred = len(group)
        group = group[: num_preferred or len(group)]
        for job in group:
            self._turns[job.priority].charge(job)
            self.remove(job.number)
        return group

    def giving_way_to(self, job: Job) -> Iterator[Job]:
        """Yield what may be sent away for `job`, first to go first; nothing may change meanwhile.

        All of lower priorities, then the newest of the client that waits with most, as long as that one keeps no less
        than the client of `job` gets: so others get a share of a queue that one has filled, and nobody gets more. A
        reserve for newcomers would keep a lone client from the whole queue, and be gone after the first of them.
        """
        for priority in reversed(PRIORITIES):
            if priority == job.priority:
                yield from self._turns[priority].surplus(job)
                return
            if self._turns[priority].num_requests:
                yield from (other for other in reversed(self._jobs.values()) if other.priority == priority)

    def _in_turn(self, key: GroupKey) -> Iterator[Job]:
        for turns in self._turns.values():
            num_requests = 0
            for job in turns.in_turn(key):
                num_requests += 1
                yield job
            if num_requests < turns.num_requests:
                return

    def _count(self, job: Job, sign: int) -> None:
        self._lanes[job.key].num_images += sign * job.num_images
        self.num_images += sign * job.num_images
        self.num_bytes += sign * job.call.pixels.nbytes
        self.work += sign * job.work
