"""What `benchmarks.input` found, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.input_loaders import OURS
from benchmarks.turns import Turn

Turns = Mapping[str, Sequence[Turn]]
"""For each loader its turns, one per round."""


def summarise(num_workers: int, turns: Turns) -> dict[str, Any]:
    """Reduce the rounds of one setting to medians; ratios are taken within a round, to the fastest peer."""
    speeds = {name: [turn.images / turn.cpu_s for turn in taken] for name, taken in turns.items()}
    peer = max((name for name in turns if name != OURS), key=lambda name: median(speeds[name]))
    ratios = [mine / other for mine, other in zip(speeds[OURS], speeds[peer], strict=True)]
    return {
        "num_workers": num_workers,
        "loaders": {name: _summarise_loader(taken) for name, taken in turns.items()},
        "fastest_peer": peer,
        "ratio": round(median(ratios), 4),
        "ratio_rounds": [round(ratio, 4) for ratio in ratios],
    }


def table(cases: Sequence[Mapping[str, Any]], limit: float) -> str:
    """Lay the summaries out for a terminal."""
    layout = "{:<26}{:>8}{:>18}{:>18}{:>12}"
    lines = [layout.format("loader", "workers", "images/s of CPU", "images/s of wall", "ms/image")]
    for case in cases:
        lines += [layout.format(*_cells(name, case["num_workers"], row)) for name, row in case["loaders"].items()]
        verdict = "ok" if case["ratio"] >= limit else "too low"
        span = f"{min(case['ratio_rounds']):.3f} to {max(case['ratio_rounds']):.3f}"
        lines += [f"    {case['ratio']:.3f} of {case['fastest_peer']} ({span}), limit {limit:.2f}: {verdict}"]
    return "\n".join(lines)


def _summarise_loader(turns: Sequence[Turn]) -> dict[str, float]:
    return {
        "images_per_cpu_s": round(median(turn.images / turn.cpu_s for turn in turns), 1),
        "images_per_wall_s": round(median(turn.images / turn.wall_s for turn in turns), 1),
    }


def _cells(name: str, num_workers: int, row: Mapping[str, float]) -> tuple[str, ...]:
    per_cpu_s = row["images_per_cpu_s"]
    return name, str(num_workers), f"{per_cpu_s:,.0f}", f"{row['images_per_wall_s']:,.0f}", f"{1e3 / per_cpu_s:.3f}"
