"""How fast recent passes went, to tell those who are refused when to come again."""

from dataclasses import dataclass

from mixer_server.scheduling.job import Job

_MEMORY = 0.75
"""Weight of what was known before a pass; about four passes are remembered."""
_RETRY_AFTER_S = (0.05, 5.0)
"""A sooner call would find the queue as it was, a later one is no promise that can be made."""


@dataclass(slots=True)
class _Pass:
    """The pass of a lane; none is under way while it has no work."""

    began_s: float = 0.0
    work: int = 0


class Pace:
    """Seconds that a lane takes for a pixel, averaged over recent passes of all lanes."""

    def __init__(self, num_lanes: int = 1) -> None:
        self._seconds: float | None = None
        self._passes = [_Pass() for _ in range(num_lanes)]

    def begin(self, group: list[Job], now_s: float, lane: int = 0) -> None:
        """Note that a pass begins; while another of its lane is under way, that one has taken until now."""
        self.end(now_s, lane)
        self._passes[lane] = _Pass(began_s=now_s, work=sum(job.work for job in group))

    def end(self, now_s: float, lane: int = 0) -> None:
        """Note that the pass of a lane is over; nothing if none is under way."""
        ended, self._passes[lane] = self._passes[lane], _Pass()
        if not ended.work:
            return
        seconds = (now_s - ended.began_s) / ended.work
        known = seconds if self._seconds is None else self._seconds
        self._seconds = _MEMORY * known + (1 - _MEMORY) * seconds

    def retry_after_s(self, work: int) -> float:
        """Estimate when so many pixels will be done, by all lanes together."""
        shortest, longest = _RETRY_AFTER_S
        return min(max(work * (self._seconds or 0.0) / len(self._passes), shortest), longest)
