"""What `benchmarks.peers` found, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peer_servers.mix_batch import IMAGES_SHAPE, NUM_IMAGES
from benchmarks.peer_systems import OURS

RATIO_LIMIT = 1.6
"""Images per second of ours over those of the best peer, that was promised."""
_BATCH_MB = float(np.prod(IMAGES_SHAPE)) / 1e6


class Entry(NamedTuple):
    """A line of the table."""

    system: str
    variant: str

    def __str__(self) -> str:
        return f"{self.system}, {self.variant}"


Measured = dict[Entry, list[list[dict[str, Any]]]]
"""For each entry its rounds, and in each the figures of `closed_loop.measure`, one for each concurrency."""


def summarise(measured: Measured, missing: Mapping[Entry, str]) -> dict[str, Any]:
    """Reduce the rounds to medians, keep each entry's best concurrency, compare ours with the best peer.

    Args:
        measured: what there is; ours is among it, and has a round at least.
        missing: why an entry has no figures.
    """
    entries = [_summarise_entry(entry, rounds) for entry, rounds in measured.items()]
    peers = [entry for entry in entries if entry["system"] != OURS]
    ours = max((entry for entry in entries if entry["system"] == OURS), key=_best_images_per_s)
    found: dict[str, Any] = {
        "entries": entries,
        "missing": [{**entry._asdict(), "reason": reason} for entry, reason in missing.items()],
        "limit": RATIO_LIMIT,
        "is_within": False,
    }
    if not peers:
        return found
    best = max(peers, key=_best_images_per_s)
    ratio = _best_images_per_s(ours) / _best_images_per_s(best)
    return {
        **found,
        "best_peer": f"{best['system']}, {best['variant']}",
        "ratio": round(ratio, 3),
        "ratio_rounds": [
            round(mine / other, 3)
            for mine, other in zip(
                ours["best"]["images_per_s_rounds"], best["best"]["images_per_s_rounds"], strict=True
            )
        ],
        "is_within": ratio >= RATIO_LIMIT,
    }


def table(found: Mapping[str, Any]) -> str:
    """Lay the summary out for a terminal."""
    layout = "{:<11}{:<30}{:>8}{:>11}{:>8}{:>10}{:>10}{:>12}"
    head = ("system", "setting", "callers", "images/s", "MB/s", "p50", "p95", "server CPU")
    lines = [layout.format(*head), *(layout.format(*_cells(entry)) for entry in found["entries"])]
    lines += [f"{each['system']}, {each['variant']}: {each['reason']}" for each in found["missing"]]
    if "ratio" not in found:
        return "\n".join([*lines, "no peer could be measured"])
    rounds, verdict = found["ratio_rounds"], "ok" if found["is_within"] else "MISSED"
    return "\n".join(
        [
            *lines,
            f"ours {found['ratio']:.2f} times the best peer ({found['best_peer']}; "
            f"in single rounds {min(rounds):.2f} to {max(rounds):.2f}), limit {found['limit']:.1f}: {verdict}",
        ]
    )


def _summarise_entry(entry: Entry, rounds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    loads = [_summarise_load(figures) for figures in zip(*rounds, strict=True)]
    return {**entry._asdict(), "loads": loads, "best": max(loads, key=lambda load: load["images_per_s"])}


def _summarise_load(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Reduce the rounds of one concurrency; percentiles are of all its batches."""
    rates = [NUM_IMAGES * figures["batches"] / figures["elapsed_s"] for figures in rounds]
    p50_s, p95_s, p99_s = np.percentile([each for figures in rounds for each in figures["latencies_s"]], (50, 95, 99))
    return {
        "concurrency": rounds[0]["concurrency"],
        "images_per_s": round(median(rates), 1),
        "images_per_s_rounds": [round(rate, 1) for rate in rates],
        "mb_per_s": round(median(rates) / NUM_IMAGES * _BATCH_MB, 1),
        "p50_s": round(float(p50_s), 6),
        "p95_s": round(float(p95_s), 6),
        "p99_s": round(float(p99_s), 6),
        "server_cpu_s": round(median(figures["server_cpu_s"] / figures["batches"] for figures in rounds), 6),
        "client_cpu_s": round(median(figures["client_cpu_s"] / figures["batches"] for figures in rounds), 6),
        "batches": sum(figures["batches"] for figures in rounds),
    }


def _best_images_per_s(entry: Mapping[str, Any]) -> float:
    return entry["best"]["images_per_s"]


def _cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    best = entry["best"]
    return (
        entry["system"],
        entry["variant"],
        str(best["concurrency"]),
        f"{best['images_per_s']:,.0f}",
        f"{best['mb_per_s']:,.0f}",
        f"{1e3 * best['p50_s']:.1f} ms",
        f"{1e3 * best['p95_s']:.1f} ms",
        f"{1e3 * best['server_cpu_s']:.1f} ms",
    )
