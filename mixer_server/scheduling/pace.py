"""How fast recent passes went, to tell those who are refused when to come again."""

from mixer_server.scheduling.job import Job

_MEMORY = 0.75
"""Weight of what was known before a pass; about four passes are remembered."""
_RETRY_AFTER_S = (0.05, 5.0)
"""A sooner call would find the queue as it was, a later one is no promise that can be made."""


class Pace:
    """Seconds that the engine takes for a pixel, averaged over recent passes."""

    def __init__(self) -> None:
        self._seconds: float | None = None
        self._began_s = 0.0
        self._work = 0

    def begin(self, group: list[Job], now_s: float) -> None:
        """Note that a pass begins; while another is under way, that one has taken until now."""
        self.end(now_s)
        self._began_s = now_s
        self._work = sum(job.work for job in group)

    def end(self, now_s: float) -> None:
        """Note that the pass is over; nothing if none is under way."""
        if not self._work:
            return
        seconds = (now_s - self._began_s) / self._work
        known = seconds if self._seconds is None else self._seconds
        self._seconds = _MEMORY * known + (1 - _MEMORY) * seconds
        self._work = 0

    def retry_after_s(self, work: int) -> float:
        """Estimate when so many pixels will be done."""
        shortest, longest = _RETRY_AFTER_S
        return min(max(work * (self._seconds or 0.0), shortest), longest)
