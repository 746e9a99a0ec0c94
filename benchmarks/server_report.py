"""What `benchmarks.server` found, as JSON and as a table."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.paths import Case, Sample

Samples = dict[str, list[Sample]]
"""For each path (bare, tcp, unix) its measurements, one per round."""


def summarise(case: Case, samples: Samples) -> dict[str, Any]:
    """Reduce the rounds of one case to medians; shares of the bare speed are taken within a round."""
    return {
        "mixer": case.mixer.name,
        "version": case.mixer.version,
        "side": case.mixer.spec.image_size,
        "batch_size": case.batch_size,
        "paths": {name: _summarise_path(rounds, samples["bare"]) for name, rounds in samples.items()},
    }


def table(cases: Sequence[dict[str, Any]]) -> str:
    """Lay the summaries out for a terminal."""
    head = ("mixer", "batch", "path", "images/s", "of bare", "client core", "lone p50", "lone p95")
    rows = [head, *(row for case in cases for row in _rows(case))]
    left, right = "{:<18}{:<14}{:<6}", "{:>10}{:>10}{:>13}{:>12}{:>12}"
    return "\n".join((left + right).format(*row) for row in rows)


def _summarise_path(rounds: Sequence[Sample], bare: Sequence[Sample]) -> dict[str, Any]:
    lone_s = [seconds for sample in rounds for seconds in sample.lone_s]
    p50_s, p95_s = np.percentile(lone_s, (50, 95)).tolist()
    ratios = [sample.images_per_s / alone.images_per_s for sample, alone in zip(rounds, bare, strict=True)]
    return {
        "images_per_s": round(median(sample.images_per_s for sample in rounds), 1),
        "images_per_s_rounds": [round(sample.images_per_s, 1) for sample in rounds],
        "ratio": round(median(ratios), 4),
        "client_share": round(median(sample.client_share for sample in rounds), 4),
        "lone_p50_s": round(p50_s, 6),
        "lone_p95_s": round(p95_s, 6),
        "lone_count": len(lone_s),
    }


def _rows(case: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, path in case["paths"].items():
        is_served = name != "bare"
        rows.append(
            (
                "" if is_served else case["mixer"],
                "" if is_served else f"{case['batch_size']} x {case['side']} px",
                name,
                f"{path['images_per_s']:,.0f}",
                f"{path['ratio']:.1%}" if is_served else "",
                f"{path['client_share']:.0%} busy" if is_served else "",
                f"{1e3 * path['lone_p50_s']:.2f} ms",
                f"{1e3 * path['lone_p95_s']:.2f} ms",
            )
        )
    return rows
