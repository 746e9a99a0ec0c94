"""What a run over a bad network did, beside the same run over a good one."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFigures:
    """One run."""

    weather: str
    """calm or bad."""
    way: str
    """cutmix mixes in the trainer; raw and jpeg say what goes up."""
    steps: int
    """Of each rank; the run ended with its summary."""
    seconds: float
    """Of the whole run, evaluations included."""
    step_s: float
    """Median time of a step, seconds."""
    slow_step_s: float
    """Of twenty steps the slowest one takes longer, seconds."""
    wait_s: float
    """Mean time that a step waited for its mixed batch, seconds."""
    wait_share: float
    """Share of their time that ranks waited for mixed batches."""
    fallbacks: int
    """Batches that the fallback mixed."""
    retries: int
    """Requests that were sent again."""
    sent_mb: float
    """Bytes of requests, MB."""
    top1: float
    """Accuracy at the end."""
    packets: int
    """That the relay delivered."""
    lost: int
    """That it dropped by chance."""
    crowded: int
    """That it dropped for want of room; should be none."""
    latest_ms: float
    """Longest that a packet was later than it should, milliseconds."""

    def __str__(self) -> str:
        share = self.lost / max(1, self.lost + self.packets)
        return (
            f"{self.way:<8}{self.steps:>6}{1000 * self.step_s:>10,.0f} ms{1000 * self.slow_step_s:>9,.0f} ms"
            f"{1000 * self.wait_s:>9,.1f} ms{self.wait_share:>8.1%}{self.fallbacks:>11}{self.retries:>9}"
            f"{self.sent_mb:>9,.1f} MB{share:>8.2%}{self.seconds:>9,.0f} s{self.top1:>8.1%}"
        )


_HEAD = (
    f"{'':<8}{'steps':>6}{'step':>13}{'p95':>12}{'waited':>12}{'share':>8}{'fallbacks':>11}{'retries':>9}"
    f"{'sent':>12}{'lost':>8}{'run':>11}{'top-1':>8}"
)


def table(runs: Sequence[RunFigures]) -> str:
    """Lay all runs out for a terminal, by weather."""
    lines: list[str] = []
    for weather in dict.fromkeys(run.weather for run in runs):
        chosen = [run for run in runs if run.weather == weather]
        late_ms = max(run.latest_ms for run in chosen)
        lines += [weather, _HEAD, *map(str, chosen), f"the relay itself was up to {late_ms:.0f} ms late", ""]
    lines += [
        f"{run.crowded} packets were dropped for want of room: {run.weather}, {run.way}" for run in runs if run.crowded
    ]
    return "\n".join(lines).rstrip()
