"""What `benchmarks.transport` found, as JSON and as a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from benchmarks.exchanges import Flow, percentiles_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One measurement of ours, and of bare sockets right before it."""

    leg: str
    """Name of the kind of exchange."""
    link: str
    """`tcp` or `unix`."""
    way: tuple[int, int]
    """Number of clients, and of batches each had under way."""
    up_bytes: int
    """Pixels of a request."""
    down_bytes: int
    """Logits and images of an answer."""
    bare_s: float
    """Seconds of one exchange over bare sockets."""
    flow: Flow
    """Ours."""
    server_cpu_s: float
    """Processor time of the server per batch, seconds."""

    @property
    def ratio(self) -> float:
        """Speed of ours as a share of that of bare sockets."""
        return self.bare_s / self.flow.batch_s

    def __str__(self) -> str:
        clients, window = self.way
        return (
            f"{self.link:<5}{clients} x {window}  {1e3 * self.flow.batch_s:8.2f} ms, bare {1e3 * self.bare_s:7.2f} ms, "
            f"{self.ratio:6.1%} of bare"
        )


def summarise(leg: str, rounds: Sequence[Sequence[Turn]], limit: float) -> dict[str, Any]:
    """Reduce the rounds of one kind of exchange to medians, for each link and way; the limit is for TCP."""
    turns = sorted((turn for turns in rounds for turn in turns if turn.leg == leg), key=_place)
    ways = [_summarise_way(list(same)) for _, same in groupby(turns, _place)]
    best = {link: max((way for way in ways if way["link"] == link), key=_ratio) for link in {w["link"] for w in ways}}
    return {
        "leg": leg,
        "up_bytes": turns[0].up_bytes,
        "down_bytes": turns[0].down_bytes,
        "limit": limit,
        "is_met": best["tcp"]["ratio"] >= limit,
        "best": best,
        "ways": ways,
    }


def table(legs: Sequence[dict[str, Any]]) -> str:
    """Lay the best ways out for a terminal."""
    head = ("exchange", "MB up", "MB down", "link", "bare", "ours", "of bare", "limit", "clients", "p95", "server")
    rows = [head, *(_row(leg, link) for leg in legs for link in sorted(leg["best"]))]
    layout = "{:<10}{:>7}{:>9}  {:<6}{:>9}{:>9}{:>9}{:>11}{:>9}{:>10}{:>10}"
    return "\n".join(layout.format(*row) for row in rows)


def _place(turn: Turn) -> tuple[str, tuple[int, int]]:
    return turn.link, turn.way


def _ratio(way: dict[str, Any]) -> float:
    return way["ratio"]


def _summarise_way(turns: Sequence[Turn]) -> dict[str, Any]:
    p50_ms, p95_ms = percentiles_ms([latency for turn in turns for latency in turn.flow.latencies_s])
    return {
        "link": turns[0].link,
        "clients": turns[0].way[0],
        "window": turns[0].way[1],
        "ratio": round(median(turn.ratio for turn in turns), 4),
        "ratio_rounds": [round(turn.ratio, 4) for turn in turns],
        "bare_ms": round(1e3 * median(turn.bare_s for turn in turns), 3),
        "batch_ms": round(1e3 * median(turn.flow.batch_s for turn in turns), 3),
        "p50_ms": p50_ms,
        "p95_ms": p95_ms,
        "server_cpu_ms": round(1e3 * median(turn.server_cpu_s for turn in turns), 3),
    }


def _row(leg: dict[str, Any], link: str) -> tuple[str, ...]:
    best = leg["best"][link]
    is_first = link == min(leg["best"])
    verdict = "ok" if leg["is_met"] else "MISSED"
    return (
        leg["leg"] if is_first else "",
        f"{leg['up_bytes'] / 1e6:.2f}" if is_first else "",
        f"{leg['down_bytes'] / 1e6:.2f}" if is_first else "",
        link,
        f"{best['bare_ms']:.2f} ms",
        f"{best['batch_ms']:.2f} ms",
        f"{best['ratio']:.1%}",
        f"{leg['limit']:.0%} {verdict}" if link == "tcp" else "",
        f"{best['clients']} x {best['window']}",
        f"{best['p95_ms']:.1f} ms",
        f"{best['server_cpu_ms']:.2f} ms",
    )
