"""When it pays to ask a second replica for a mix that takes long, and how often that may be done.

A hedge is safe, since a mix is a pure function of its request. It is not free: so only a share of the mixes is hedged,
and a fleet whose replicas are all slow does not get twice the work.
"""

import threading
from collections import deque

from samix.client.config import HedgePolicy

_NUM_TIMES = 200
"""Latest answers that are looked at."""
_MIN_TIMES = 20
"""Before so many are known, nothing is slow."""
_MOST_SAVED = 10.0
"""Hedges that a quiet time can save up."""


class Hedging:
    """What one client knows of how long mixes take, and what it may still spend. Safe for threads; pickles as fresh."""

    def __init__(self, policy: HedgePolicy) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._times_s: deque[float] = deque(maxlen=_NUM_TIMES)
        self._saved = 0.0

    def __reduce__(self) -> tuple:
        return Hedging, (self._policy,)

    def start(self) -> float | None:
        """Note that a mix is sent, and say after how many seconds it is slow; None if that is not known yet."""
        with self._lock:
            self._saved = min(self._saved + self._policy.max_share, _MOST_SAVED)
            if len(self._times_s) < _MIN_TIMES:
                return None
            times_s = sorted(self._times_s)
        return max(times_s[int(self._policy.quantile * len(times_s))], self._policy.min_delay_s)

    def answered(self, seconds: float) -> None:
        """Note how long a mix took from when it was first sent."""
        with self._lock:
            self._times_s.append(seconds)

    @property
    def is_affordable(self) -> bool:
        """Whether one more may be sent twice."""
        return self._saved >= 1.0

    def spend(self) -> None:
        """Note that a mix was sent twice."""
        with self._lock:
            self._saved -= 1.0
