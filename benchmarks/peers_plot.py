"""A picture of `benchmarks.peers`: throughput and latency against concurrency, each system at its best setting."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.peer_systems import OURS, SYSTEMS

_COLOURS = {system.name: f"C{number}" for number, system in enumerate(SYSTEMS)}


def draw_peers(report: Mapping[str, Any], path: Path) -> None:
    """Write a PNG.

    Args:
        report: of `peers_report.summarise`, with what `figures.describe` says.
        path: of the picture.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for entry in report["entries"]:
        name = entry["system"]
        if name not in best or entry["best"]["images_per_s"] > best[name]["best"]["images_per_s"]:
            best[name] = entry
    with mpl.rc_context({"font.size": 11}):
        figure = Figure(figsize=(12, 5.4), layout="constrained")
        throughput, latency = figure.subplots(1, 2)
        for entry in best.values():
            _draw_entry(entry, throughput, latency)
        _dress(throughput, "images per second", report)
        _dress(latency, "latency of a batch, ms (solid: median, dotted: 95 %)", report)
        throughput.set_ylim(bottom=0)
        latency.set_yscale("log")
        latency.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        latency.yaxis.set_major_formatter("{x:g}")
        latency.yaxis.set_minor_formatter(NullFormatter())
        figure.legend(fontsize=10, frameon=False, loc="outside lower center", ncols=3)
        figure.suptitle(
            "64 x 3 x 224 x 224 uint8 up, logits down, TCP loopback, an engine that costs nothing\n"
            f"{report['machine']['cpu']}, client and server on a core each, {report['date'][:10]}",
            fontsize=11,
        )
        figure.savefig(path, dpi=120)


def _draw_entry(entry: Mapping[str, Any], throughput: Axes, latency: Axes) -> None:
    loads, colour = entry["loads"], _COLOURS[entry["system"]]
    callers = [load["concurrency"] for load in loads]
    p50_ms, p95_ms = ([1e3 * load[name] for load in loads] for name in ("p50_s", "p95_s"))
    width = 3 if entry["system"] == OURS else 1.6
    label = f"{entry['system']} ({entry['variant']})"
    throughput.plot(callers, [load["images_per_s"] for load in loads], "o-", color=colour, lw=width, label=label)
    latency.plot(callers, p50_ms, "o-", color=colour, lw=width)
    latency.plot(callers, p95_ms, ":", color=colour, lw=width)


def _dress(axes: Axes, title: str, report: Mapping[str, Any]) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("callers at once")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({load["concurrency"] for entry in report["entries"] for load in entry["loads"]}))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
