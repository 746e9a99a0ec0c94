"""Which exchange with the mixer server a rank uses: the one that was set, or the quickest of those it tried.

A trial sends one batch at a time, so that no candidate waits behind another on the link. The candidates take turns, so
that what disturbs the link for a while disturbs them all.
"""

import logging
from collections.abc import Mapping, Sequence
from statistics import median

from samix.client.config import Exchange
from samix.client.pending import MixTimes

log = logging.getLogger(__name__)

TRIALS = 8
"""Batches that each candidate is judged by."""


class Trial:
    """Tries each candidate on some batches, then keeps to the quickest, whatever happens later.

    Of one candidate there is nothing to try.
    """

    def __init__(self, candidates: Sequence[Exchange], *, rank: int, trials: int = TRIALS) -> None:
        self._rank = rank
        self._trials = trials
        self._answers: dict[Exchange, list[MixTimes]] = {candidate: [] for candidate in candidates}
        self._timed_out: set[Exchange] = set()
        self._chosen = candidates[0] if len(candidates) == 1 else None

    @property
    def is_settled(self) -> bool:
        """Whether the choice is made, so that batches may overlap."""
        return self._chosen is not None

    def next(self) -> Exchange:
        """Return the chosen one, or the candidate that was tried least."""
        if self._chosen is not None:
            return self._chosen
        return min(self._running(), key=lambda candidate: len(self._answers[candidate]))

    def answered(self, exchange: Exchange, times: MixTimes) -> None:
        """Count an answer, and choose when it was the last one needed."""
        if self._chosen is None:
            self._answers[exchange].append(times)
            self._settle()

    def timed_out(self, exchange: Exchange) -> None:
        """Drop a candidate that is slower than the deadline: each further trial would cost as much."""
        if self._chosen is None:
            self._timed_out.add(exchange)
            self._settle()

    def _running(self) -> list[Exchange]:
        # Where every candidate has timed out, it is the mixer that is slow: all go on.
        return [candidate for candidate in self._answers if candidate not in self._timed_out] or list(self._answers)

    def _settle(self) -> None:
        needed = 1 + self._trials  # the first opens connections and loads libraries
        if any(len(self._answers[candidate]) < needed for candidate in self._running()):
            return
        judged = {candidate: self._answers[candidate][1:] for candidate in self._running()}
        self._chosen = quickest({candidate: _median_s(judged[candidate], "total_s") for candidate in judged})
        log.info(
            "mixer_exchange_chosen",
            extra={
                "rank": self._rank,
                "chosen": str(self._chosen),
                "why": "least time from a batch to its mix, median",
                "figures": {
                    str(candidate): _figures(judged[candidate]) if candidate in judged else "timed out"
                    for candidate in self._answers
                },
            },
        )


def quickest(totals_s: Mapping[Exchange, float]) -> Exchange:
    """Choose the candidate with the least time; of equals, the one that was named first."""
    return min(totals_s, key=totals_s.__getitem__)


def _median_s(answers: Sequence[MixTimes], part: str) -> float:
    return median(getattr(times, part) for times in answers)


def _figures(answers: Sequence[MixTimes]) -> dict[str, float]:
    """Medians in milliseconds."""
    return {
        f"{part}_ms": round(1000 * _median_s(answers, f"{part}_s"), 2)
        for part in ("total", "answer", "encode", "blend")
    }
