"""How the clients of one priority take turns: equal shares of the work, by start-time fair queueing.

Next is always the client that was given least (Goyal, Vin and Cheng, SIGCOMM 1996). One that comes, or comes back,
starts level with those at work, so that idling saves up nothing. Work is counted in pixels, because large images keep
the mixer busy for longer.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Set
from dataclasses import dataclass

from mixer_server.scheduling.job import GroupKey, Job

_MAX_IDLE = 256
_CREEP = 16


@dataclass(kw_only=True, slots=True)
class _Flow:
    """How far one client is."""

    given: int
    """Work that it was given, in pixels, as if it had been at work from the beginning."""
    num_requests: int = 0
    """Requests that wait."""
    num_images: int = 0
    """Images that wait."""


class Turns:
    """The requests of one priority, by client."""

    def __init__(self) -> None:
        self.num_requests = 0
        """Requests that wait."""
        self._level = 0
        self._flows: dict[str, _Flow] = {}
        self._idle: dict[str, int] = {}  # what those were given who wait for nothing
        self._lines: dict[GroupKey, dict[str, OrderedDict[int, Job]]] = {}  # by client and number; none is empty

    @property
    def num_clients(self) -> int:
        """Clients whose requests wait."""
        return len(self._flows)

    def add(self, job: Job) -> None:
        """Let a request wait for its turn."""
        flow = self._flows.get(job.client)
        if flow is None:
            given = max(self._level, self._idle.pop(job.client, 0))
            flow = self._flows[job.client] = _Flow(given=given)
        flow.num_requests += 1
        flow.num_images += job.num_images
        self.num_requests += 1
        self._lines.setdefault(job.key, {}).setdefault(job.client, OrderedDict())[job.number] = job

    def charge(self, job: Job) -> None:
        """Count a request that waits as work given to its client."""
        flow = self._flows[job.client]
        if flow.given > self._level:
            self._level = flow.given
        else:  # ever new clients, who all start here, would keep it here and go before all others
            self._level += job.work // _CREEP
        flow.given += job.work

    def remove(self, job: Job) -> None:
        """Let a request go, served or not."""
        flow, line = self._flows[job.client], self._lines[job.key]
        flow.num_requests -= 1
        flow.num_images -= job.num_images
        self.num_requests -= 1
        if not flow.num_requests:
            del self._flows[job.client]
            self._remember(job.client, flow.given)
        del line[job.client][job.number]
        if not line[job.client]:
            del line[job.client]
        if not line:
            del self._lines[job.key]

    def next_key(self, keys: Set[GroupKey]) -> GroupKey:
        """Tell what kind of request has the next turn, one of `keys` if any of them waits; something must wait."""
        candidates = [key for key in self._lines if key in keys] or list(self._lines)
        return candidates[0] if len(candidates) == 1 else min(candidates, key=lambda key: min(self._heads(key)))

    def in_turn(self, key: GroupKey) -> Iterator[Job]:
        """Yield all requests of a key, each client's in the order they came; nothing may change meanwhile."""
        heads = self._heads(key)
        heapq.heapify(heads)
        jobs_of: dict[str, Iterator[Job]] = {}
        while heads:
            given, number, client = heads[0]
            if client not in jobs_of:
                jobs_of[client] = iter(self._lines[key][client].values())
            job = next(jobs_of[client], None)
            if job is None:
                heapq.heappop(heads)
            else:
                yield job
                heapq.heapreplace(heads, (given + job.work, number, client))

    def surplus(self, job: Job) -> Iterator[Job]:
        """Yield the newest of the client that waits with most images, while it keeps no fewer than `job`'s gets."""
        if not self._flows:
            return
        own = self._flows.get(job.client)
        num_images = job.num_images + (own.num_images if own else 0)
        rival, flow = max(self._flows.items(), key=lambda item: item[1].num_images)
        left = flow.num_images
        for other in self._newest_first(rival):
            left -= other.num_images
            if left < num_images:
                return
            yield other

    def _heads(self, key: GroupKey) -> list[tuple[int, int, str]]:
        """List the clients that wait with this key: who was given least is least, then who came first."""
        if key not in self._lines:
            return []
        flows = self._flows
        return [(flows[client].given, next(iter(queue)), client) for client, queue in self._lines[key].items()]

    def _newest_first(self, client: str) -> Iterator[Job]:
        queues = (reversed(line[client].values()) for line in self._lines.values() if client in line)
        return heapq.merge(*queues, key=lambda job: -job.number)

    def _remember(self, client: str, given: int) -> None:
        self._idle[client] = given
        if len(self._idle) > _MAX_IDLE:  # then those furthest ahead, whom forgetting would favour most
            self._idle = dict(heapq.nlargest(_MAX_IDLE // 2, self._idle.items(), key=lambda item: item[1]))
