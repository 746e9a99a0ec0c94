"""What `benchmarks.overlap` found, as JSON and as a table."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.overlap_trainer import Turn

REMOTE = "SAMix^P, remote"
LOCAL = "CutMix"
RATIO_LIMIT = 1.05
"""Median step time beside the service, over that beside the unconnected neighbour, that was promised."""
WAIT_LIMIT = 0.02
"""Share of a step that waits for its mixed batch, that was promised."""

Turns = Mapping[str, Sequence[Turn]]
"""For both trainers their turns, one per round."""


def summarise(turns: Turns) -> dict[str, Any]:
    """Reduce the rounds to medians.

    A trainer's figure is the median over its rounds of what a round says; ratios of the rounds show how sure it is.
    """
    trainers = {name: _summarise_trainer(taken) for name, taken in turns.items()}
    mine, other = trainers[REMOTE], trainers[LOCAL]
    ratio = mine["step_s"] / other["step_s"]
    return {
        "trainers": trainers,
        "ratio": round(ratio, 4),
        "ratio_rounds": _ratios(turns, lambda turn: median(turn.step_s)),
        "cpu_ratio": round(mine["cpu_s"] / other["cpu_s"], 4),
        "cpu_ratio_rounds": _ratios(turns, lambda turn: turn.cpu_s / len(turn.step_s)),
        "wait_share": mine["wait_share"],
        "limits": {"ratio": RATIO_LIMIT, "wait_share": WAIT_LIMIT},
        "is_within": ratio <= RATIO_LIMIT and mine["wait_share"] <= WAIT_LIMIT,
    }


def table(found: Mapping[str, Any]) -> str:
    """Lay the summary out for a terminal."""
    layout = "{:<18}{:>11}{:>11}{:>10}{:>12}{:>13}"
    lines = [layout.format("trainer", "step", "CPU", "waited", "of step", "other core")]
    lines += [layout.format(*_cells(name, row)) for name, row in found["trainers"].items()]
    ratios, limits = found["ratio_rounds"], found["limits"]
    span = f"of all rounds {min(ratios):.3f} to {max(ratios):.3f}"
    return "\n".join(
        [
            *lines,
            f"step time {found['ratio']:.3f} of CutMix's ({span}), limit {limits['ratio']:.2f}: "
            + _verdict(found["ratio"] <= limits["ratio"]),
            f"CPU time  {found['cpu_ratio']:.3f} of CutMix's",
            f"waited    {found['wait_share']:.2%} of a step, limit {limits['wait_share']:.0%}: "
            + _verdict(found["wait_share"] <= limits["wait_share"]),
        ]
    )


def _summarise_trainer(turns: Sequence[Turn]) -> dict[str, Any]:
    return {
        "step_s": round(median(median(turn.step_s) for turn in turns), 5),
        "step_s_rounds": [round(median(turn.step_s), 5) for turn in turns],
        "cpu_s": round(median(turn.cpu_s / len(turn.step_s) for turn in turns), 5),
        "waited_s": round(median(median(turn.waited_s) for turn in turns), 6),
        "wait_share": round(median(_wait_share(turn) for turn in turns), 5),
        "wait_share_rounds": [round(_wait_share(turn), 5) for turn in turns],
        "other_core_share": round(median(turn.beside_cpu_s / sum(turn.step_s) for turn in turns), 4),
    }


def _wait_share(turn: Turn) -> float:
    return sum(turn.waited_s) / sum(turn.step_s)


def _ratios(turns: Turns, figure: Callable[[Turn], float]) -> list[float]:
    return [round(figure(mine) / figure(other), 4) for mine, other in zip(turns[REMOTE], turns[LOCAL], strict=True)]


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{1e3 * row['step_s']:.1f} ms",
        f"{1e3 * row['cpu_s']:.1f} ms",
        f"{1e3 * row['waited_s']:.2f} ms",
        f"{row['wait_share']:.2%}",
        f"{row['other_core_share']:.0%} busy",
    )


def _verdict(is_within: bool) -> str:
    return "ok" if is_within else "over"
