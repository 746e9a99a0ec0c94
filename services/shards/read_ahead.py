"""Fetches the remote shards that an epoch will need, before a worker has to wait for them.

A shard that cannot be fetched here is left to the worker that needs it, which tries again and tells what is wrong.
"""

import logging
import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Self

import numpy as np

from samix.errors import InputError
from services.shards.index import FETCHES_AT_ONCE, ShardSet

log = logging.getLogger(__name__)

SHARDS_AHEAD = 2 * FETCHES_AT_ONCE
"""Shards fetched beyond those that the batches asked for so far hold."""

_CLOSE_S = 2.0
"""How long `close` waits for threads; one that waits for a silent server ends by itself, at its timeout."""


class ReadAhead:
    """A few threads that fetch in the order of first use; they end with `close`."""

    def __init__(self, shards: ShardSet, *, shards_ahead: int = SHARDS_AHEAD) -> None:
        self._shards = shards
        self._shards_ahead = shards_ahead
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._plan: list[tuple[int, int]] = []
        self._taken = 0
        self._reached = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self, batches: Sequence[np.ndarray]) -> None:
        """Plan for batches of positions, int64 [B] each, that will be asked for in this order."""
        if not self._shards.has_remote:
            return
        with self._changed:
            self._plan = first_uses(self._shards, batches)
            self._taken = self._reached = 0
            self._changed.notify_all()
        self._start_threads()

    def reached(self, batch: int) -> None:
        """Note that this batch is asked for now, counted from 0."""
        with self._changed:
            self._reached = batch
            self._changed.notify_all()

    def close(self) -> None:
        """Give up what is being fetched and end the threads; `start` may follow."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_S)
        self._threads = []
        self._stop = threading.Event()

    def _start_threads(self) -> None:
        if not self._threads:
            self._threads = [
                threading.Thread(target=self._run, args=(self._stop,), daemon=True, name=f"read-ahead-{number}")
                for number in range(FETCHES_AT_ONCE)
            ]
            for thread in self._threads:
                thread.start()

    def _run(self, stop: threading.Event) -> None:
        while (number := self._next(stop)) is not None:
            shard = self._shards.shards[number]
            try:
                self._shards.cache.open(shard, stop=stop).close()
            except InputError as err:
                log.debug("read_ahead_failed", extra={"shard": shard.address, "reason": str(err)})

    def _next(self, stop: threading.Event) -> int | None:
        with self._changed:
            self._changed.wait_for(lambda: stop.is_set() or self._is_due())  # `close` ends it
            if stop.is_set():
                return None
            self._taken += 1
            return self._plan[self._taken - 1][1]

    def _is_due(self) -> bool:
        needed = bisect_right(self._plan, self._reached, key=lambda use: use[0])
        return self._taken < min(needed + self._shards_ahead, len(self._plan))


def first_uses(shards: ShardSet, batches: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """List the remote shards of some batches as (number of the batch that needs it first, number of the shard)."""
    if not batches:
        return []
    batch_of = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    shard_of = np.searchsorted(np.cumsum(shards.samples), np.concatenate(batches), side="right")
    numbers, first = np.unique(shard_of, return_index=True)
    uses = sorted(zip(batch_of[first].tolist(), first.tolist(), numbers.tolist(), strict=True))
    return [(batch, number) for batch, _, number in uses if shards.shards[number].path is None]
