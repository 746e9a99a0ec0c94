"""Samples that cannot be read: what takes their place, and how many may be lost.

A batch stays full and every rank keeps its number of steps: ranks out of step would hang in their all-reduce. What is
drawn depends on the sample's place in the run only, so that number of workers and ranks change nothing.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from samix.errors import ShardError

log = logging.getLogger(__name__)

MAX_REPLACEMENTS = 16
"""Draws for one place in a batch. If half of a set is unreadable, one place in 100,000 finds nothing."""

_REPLACEMENT_STREAM = 3
"""First word of the seed here; order and augmentation use others."""


@dataclass(frozen=True, slots=True)
class SkippedSample:
    """One sample that was left out."""

    position: int
    """Where it stands in its set."""
    reason: str
    """The sentence of its error."""


def draw_replacement(num_samples: int, *, seed: int, epoch: int, position: int, attempt: int) -> int:
    """Choose the position read instead of `position` of an epoch; `attempt` counts from 0."""
    return int(np.random.default_rng((_REPLACEMENT_STREAM, seed, epoch, position, attempt)).integers(num_samples))


class SkipLedger:
    """Counts what one rank skipped in an epoch, says so once per reason, and ends the run when it is too much."""

    def __init__(self, budget: int, *, rank: int) -> None:
        self._budget = budget
        self._rank = rank
        self._epoch = 0
        self._reported: set[str] = set()
        self.in_epoch = 0
        """Samples skipped in this epoch."""
        self.total = 0
        """Samples skipped since the program started."""

    def start(self, epoch: int) -> None:
        """Begin an epoch with a full budget."""
        self._epoch = epoch
        self._reported.clear()
        self.in_epoch = 0

    def count(self, skipped: Iterable[SkippedSample]) -> None:
        """Count what one batch skipped.

        Raises:
            ShardError: if it exceeds the budget.
        """
        for sample in skipped:
            self.in_epoch += 1
            self.total += 1
            if self.in_epoch > self._budget:
                raise ShardError(
                    f"rank {self._rank} could not read {self.in_epoch} samples of epoch {self._epoch}, the last "
                    f"because {sample.reason}; skip-budget allows {self._budget}: repair the shards or raise it"
                )
            if sample.reason not in self._reported:
                self._reported.add(sample.reason)
                log.warning(
                    "sample_skipped",
                    extra={
                        "rank": self._rank,
                        "epoch": self._epoch,
                        "position": sample.position,
                        "reason": sample.reason,
                    },
                )

    def report(self) -> None:
        """Log the total of an epoch, if there is any."""
        if self.in_epoch:
            fields = {"rank": self._rank, "epoch": self._epoch, "samples": self.in_epoch, "budget": self._budget}
            log.warning("samples_skipped", extra=fields)
