"""Epochs that are being streamed: the order of one, and what of it could not be read, shared by all its consumers."""

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from samix.errors import DataLost
from services.shards.decoding import UnreadableSample
from services.shards.index import ShardSet
from services.shards.order import epoch_order
from services.shards.read_ahead import ReadAhead

log = logging.getLogger(__name__)

_MAX_IDLE = 4
"""Epochs that are remembered without a consumer, who may come back soon."""
_FETCH_STEP = 256
"""Samples whose shards are fetched ahead together."""


class Epoch:
    """One epoch of one dataset. Safe for threads."""

    def __init__(
        self, shards: ShardSet, *, attempts: Iterator[int], seed: int, epoch: int, window: int, skip_budget: int
    ) -> None:
        self.attempt = next(attempts)
        """Of `DecodeRequest`: shards that could not be read are tried again for a new epoch, and after it was lost."""
        self.seed = seed
        self.epoch = epoch
        self.num_users = 0
        """Of `Epochs`, under its lock."""
        order = epoch_order(shards.samples, seed=seed, epoch=epoch, window=window)
        self.order = order.astype(np.int32 if len(order) < 2**31 else np.int64)
        """[N]: every position once, in the order in which batches take them."""
        self._attempts = attempts
        self._skip_budget = skip_budget
        self._lock = threading.Lock()
        self._skipped: set[int] = set()
        self._read_ahead = ReadAhead(shards)
        self._fetched_from: int | None = None

    def start_from(self, row: int) -> None:
        """Fetch the remote shards that the order needs from this row on, unless an earlier caller began it."""
        step = row // _FETCH_STEP
        with self._lock:
            if self._fetched_from is not None:
                return
            self._fetched_from = step
            starts = range(step * _FETCH_STEP, len(self.order), _FETCH_STEP)
            self._read_ahead.start([self.order[start : start + _FETCH_STEP] for start in starts])

    def reach(self, row: int) -> None:
        """Note that the batch which begins at this row of the order is made now."""
        if self._fetched_from is not None:
            self._read_ahead.reached(max(0, row // _FETCH_STEP - self._fetched_from))

    def count_skipped(self, samples: Iterable[UnreadableSample]) -> int:
        """Count samples that are left out of a batch; answers how many of them are new.

        Raises:
            DataLost: if they exceed the budget; none of them is counted then, for the batch is not sent.
        """
        with self._lock:
            new = [sample for sample in samples if sample.position not in self._skipped]
            if beyond := new[self._skip_budget - len(self._skipped) :]:
                self.attempt = next(self._attempts)
                raise DataLost(
                    f"{beyond[0].reason} (sample {beyond[0].name}, epoch {self.epoch}; datasets.skip-budget allows "
                    f"{self._skip_budget} such samples of an epoch)"
                )
            self._skipped.update(sample.position for sample in new)
        for sample in new:
            log.warning(
                "dataset_sample_skipped",
                extra={"sample": sample.name, "epoch": self.epoch, "seed": self.seed, "reason": sample.reason},
            )
        return len(new)

    def rest(self) -> None:
        """Fetch nothing ahead as long as nobody needs it."""
        with self._lock:
            self._fetched_from = None
            self._read_ahead.close()


class Epochs:
    """The epochs of one dataset by seed and number. Safe for threads."""

    def __init__(self, shards: ShardSet, *, window: int, skip_budget: int) -> None:
        self._shards = shards
        self._window = window
        self._skip_budget = skip_budget
        self._lock = threading.Lock()
        self._attempts = itertools.count(1)
        self._epochs: OrderedDict[tuple[int, int], Epoch] = OrderedDict()

    @contextmanager
    def use(self, seed: int, epoch: int) -> Iterator[Epoch]:
        """Share an epoch during the block."""
        with self._lock:
            found = self._epochs.pop((seed, epoch), None) or self._open(seed, epoch)
            self._epochs[seed, epoch] = found  # the last one is the most recently used
            found.num_users += 1
        try:
            yield found
        finally:
            with self._lock:
                found.num_users -= 1
                is_idle = not found.num_users
                self._forget()
            if is_idle:
                found.rest()

    def _open(self, seed: int, epoch: int) -> Epoch:
        return Epoch(
            self._shards,
            attempts=self._attempts,
            seed=seed,
            epoch=epoch,
            window=self._window,
            skip_budget=self._skip_budget,
        )

    def _forget(self) -> None:
        idle = [key for key, epoch in self._epochs.items() if not epoch.num_users]
        for key in idle[: max(0, len(idle) - _MAX_IDLE)]:
            del self._epochs[key]
