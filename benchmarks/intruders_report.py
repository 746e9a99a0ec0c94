"""The table of `samix bench intruders`, and how to read it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

LIMIT = 0.9
"""Of its undisturbed throughput, that a legitimate client has to keep."""

HOW_TO_READ = f"""\
kept         images/s of a legitimate client (TLS, a token, one stream) beside the intruder, as a share of the windows
             right before and after; median over the rounds; the limit is {LIMIT:g}
intruder     times a second that it did its act, and which answers it got: one process at the lowest priority, which
             has what server and client leave of the cores. `flood` is shown and not judged: what it costs is gRPC's
             taking of connections, which a packet filter has to bound (docs/security.md)
costs        processor time of the server for one act, measured while nobody else was there
health       answers of gRPC health checks, each on a new connection, and how long the slowest took"""


@dataclass(kw_only=True, slots=True)
class Visit:
    """One act in one window."""

    kept: float
    """Throughput of the client, as a share of the windows around."""
    done: dict[str, float]
    """What the intruder got, times a second."""
    num_healthy: int
    """Health checks that were answered well."""
    num_asked: int
    """Health checks."""
    slowest_s: float
    """The slowest of them, seconds."""


def summarise(visits: Sequence[Visit], cost_s: float) -> dict[str, Any]:
    """Put the windows of one act together; `cost_s` is what it costs an idle server, seconds."""
    answers = {answer for visit in visits for answer in visit.done}
    return {
        "kept": round(statistics.median(visit.kept for visit in visits), 3),
        "worst": round(min(visit.kept for visit in visits), 3),
        "cost_ms": round(1000 * cost_s, 3),
        "done": {a: round(statistics.mean(visit.done.get(a, 0.0) for visit in visits), 1) for a in sorted(answers)},
        "healthy": sum(visit.num_healthy for visit in visits),
        "asked": sum(visit.num_asked for visit in visits),
        "slowest_s": round(max(visit.slowest_s for visit in visits), 3),
    }


def plain(visits: Mapping[str, Sequence[Visit]]) -> dict[str, Any]:
    """Spell all windows in types of JSON."""
    return {act: [asdict(visit) for visit in found] for act, found in visits.items()}


def spell(done: Mapping[str, float]) -> str:
    """Say in a line what an intruder got."""
    return ", ".join(f"{answer} {number:,.0f}/s" for answer, number in done.items()) or "nothing"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the table, a line for each act."""
    lines = [f"{'':<18}{'kept':>7}{'worst':>7}{'costs':>11}   {'health':<20}intruder"]
    for act, row in rows.items():
        health = f"{row['healthy']}/{row['asked']}, {1000 * row['slowest_s']:,.0f} ms"
        lines.append(
            f"{act:<18}{row['kept']:>7.3f}{row['worst']:>7.3f}{row['cost_ms']:>8.2f} ms   {health:<20}"
            f"{spell(row['done'])}"
        )
    return "\n".join(lines)
