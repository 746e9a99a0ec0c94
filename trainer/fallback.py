"""When to leave a failing mixer alone, and when to stop a run because it failed for too long."""

import time
from collections.abc import Callable

from services.cli import ProgramFailed

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


class BudgetSpent(ProgramFailed):
    """A rank mixed more batches by its fallback than it may in one epoch."""


class Breaker:
    """Keeps a run from waiting for a dead mixer at every step: pauses that double while it keeps failing."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pause_s = 0.0
        self._opened_at = float("-inf")

    def allows(self) -> bool:
        """Whether to ask the mixer now."""
        return self._clock() >= self._opened_at + self._pause_s

    def now(self) -> float:
        """The time to pass to `failed`, read when a batch is sent."""
        return self._clock()

    def failed(self, sent_at: float) -> None:
        """Note that the batch sent then was not answered; those sent before the last failure tell nothing new."""
        if sent_at <= self._opened_at:
            return
        self._pause_s = min(max(FIRST_PAUSE_S, 2 * self._pause_s), LONGEST_PAUSE_S)
        self._opened_at = self._clock()

    def succeeded(self) -> None:
        """Note an answer: every batch is sent again."""
        self._pause_s = 0.0
        self._opened_at = float("-inf")


class FailureBudget:
    """Bounds the batches that one rank may mix by its fallback in one epoch."""

    def __init__(self, batches: int, mixer: str) -> None:
        self._batches = batches
        self._mixer = mixer
        self._left = batches

    def renew(self) -> None:
        """Start an epoch."""
        self._left = self._batches

    def spend(self, cause: Exception) -> None:
        """Pay for one batch.

        Raises:
            BudgetSpent: if nothing is left.
        """
        if self._left == 0:
            raise BudgetSpent(
                f"a rank may mix {self._batches} batches of an epoch by its fallback and needs one more ({cause}); "
                f"repair the mixer at {self._mixer}, or raise --mixing.failure-budget"
            ) from cause
        self._left -= 1
