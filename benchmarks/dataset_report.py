"""What `benchmarks.dataset` found, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

RAW_LIMIT = 0.5
"""Least share of a raw stream that unmixed batches from memory have to reach."""
PEER_LIMIT = 1.2
"""Least multiple of the best setting of tf.data service."""
LOOP_LIMIT = 0.9
"""Least share of the loop in one process that mixed batches have to reach."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRound:
    """Unmixed batches from memory, all within the same seconds."""

    raw_s: float
    """Seconds of a batch over a bare socket, one way."""
    figures: Mapping[str, Sequence[Mapping[str, Any]]]
    """By who streamed: the figures of `closed_loop.measure`, one for each number of consumers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingRound:
    """Mixed batches, right after each other."""

    loop: Mapping[str, float]
    """By setting: images per second of the loop in one process."""
    served: Mapping[str, float]
    """By setting: images per second that arrived from a server on the same cores."""

    @property
    def ratio(self) -> float:
        """Of the best setting of ours to the best of the loop."""
        return max(self.served.values()) / max(self.loop.values())


def summarise_streams(
    ours: str, batch_bytes: int, rounds: Sequence[StreamRound], missing: Mapping[str, str]
) -> dict[str, Any]:
    """Reduce the rounds to medians and compare; ratios are of one round.

    Args:
        ours: the name of ours.
        batch_bytes: pixels of a batch.
        rounds: what was measured; whoever failed in one of them is in none.
        missing: why somebody is left out.
    """
    streams = [_summarise_stream(name, batch_bytes, rounds) for name in rounds[0].figures]
    mine = next(stream for stream in streams if stream["name"] == ours)
    peers = [stream for stream in streams if stream["name"] != ours]
    of_raw = [each.raw_s * rate for each, rate in zip(rounds, mine["batches_per_s_rounds"], strict=True)]
    found: dict[str, Any] = {
        "batch_bytes": batch_bytes,
        "raw_ms": round(1e3 * median(each.raw_s for each in rounds), 3),
        "raw_mb_per_s": round(batch_bytes / 1e6 / median(each.raw_s for each in rounds), 1),
        "streams": streams,
        "missing": [{"name": name, "reason": reason} for name, reason in missing.items()],
        "of_raw": _judged(of_raw, RAW_LIMIT),
    }
    if peers:
        best = max(peers, key=lambda stream: stream["batches_per_s"])
        rates = zip(mine["batches_per_s_rounds"], best["batches_per_s_rounds"], strict=True)
        found["of_peer"] = {"peer": best["name"], **_judged([own / other for own, other in rates], PEER_LIMIT)}
    return found


def summarise_mixing(name: str, rounds: Sequence[MixingRound]) -> dict[str, Any]:
    """Reduce the rounds of one mixer to medians."""
    return {
        "name": name,
        "loop": {way: round(median(each.loop[way] for each in rounds), 1) for way in rounds[0].loop},
        "served": {way: round(median(each.served[way] for each in rounds), 1) for way in rounds[0].served},
        "of_loop": _judged([each.ratio for each in rounds], LOOP_LIMIT),
    }


def is_met(report: Mapping[str, Any]) -> bool:
    """Say whether every limit is kept; a peer that could not be measured keeps none."""
    streams = report.get("streams")
    judged = [case["of_loop"] for case in report.get("mixing", ())]
    if streams is not None:
        judged += [streams["of_raw"], streams.get("of_peer", {"is_met": False})]
    return all(each["is_met"] for each in judged)


def table(report: Mapping[str, Any]) -> str:
    """Lay the summary out for a terminal."""
    streams = report.get("streams")
    return "\n".join(
        [
            *(_stream_lines(streams) if streams else ()),
            *(_mixing_lines(report["mixing"]) if report.get("mixing") else ()),
        ]
    )


def _summarise_stream(name: str, batch_bytes: int, rounds: Sequence[StreamRound]) -> dict[str, Any]:
    """Keep the number of consumers with the most batches per second in the median."""
    loads = [_summarise_load(name, index, rounds) for index in range(len(rounds[0].figures[name]))]
    best = max(loads, key=lambda load: load["batches_per_s"])
    return {"name": name, **best, "mb_per_s": round(best["batches_per_s"] * batch_bytes / 1e6, 1), "loads": loads}


def _summarise_load(name: str, index: int, rounds: Sequence[StreamRound]) -> dict[str, Any]:
    turns = [each.figures[name][index] for each in rounds]
    rates = [turn["batches"] / turn["elapsed_s"] for turn in turns]
    return {
        "consumers": turns[0]["concurrency"],
        "batches_per_s": round(median(rates), 2),
        "batches_per_s_rounds": [round(rate, 2) for rate in rates],
        "server_cpu_ms": round(1e3 * median(turn["server_cpu_s"] / turn["batches"] for turn in turns), 3),
        "client_cpu_ms": round(1e3 * median(turn["client_cpu_s"] / turn["batches"] for turn in turns), 3),
    }


def _judged(ratios: Sequence[float], limit: float) -> dict[str, Any]:
    ratio = median(ratios)
    return {
        "ratio": round(ratio, 4),
        "ratio_rounds": [round(each, 4) for each in ratios],
        "limit": limit,
        "is_met": ratio >= limit,
    }


def _stream_lines(streams: Mapping[str, Any]) -> list[str]:
    layout = "{:<34}{:>10}{:>11}{:>10}{:>12}{:>12}"
    lines = [layout.format("unmixed, from memory", "consumers", "ms/batch", "MB/s", "server CPU", "client CPU")]
    lines.append(
        layout.format("raw TCP, one way", 1, f"{streams['raw_ms']:.2f}", f"{streams['raw_mb_per_s']:,.0f}", "", "")
    )
    for each in streams["streams"]:
        cells = (f"{1e3 / each['batches_per_s']:.2f}", f"{each['mb_per_s']:,.0f}")
        cpu = (f"{each['server_cpu_ms']:.2f} ms", f"{each['client_cpu_ms']:.2f} ms")
        lines.append(layout.format(each["name"], each["consumers"], *cells, *cpu))
    lines += [f"{each['name']}: {each['reason']}" for each in streams["missing"]]
    lines.append(f"ours {_verdict(streams['of_raw'])} of raw TCP")
    if "of_peer" in streams:
        lines.append(f"ours {_verdict(streams['of_peer'])} times {streams['of_peer']['peer']}")
    else:
        lines.append("no peer could be measured")
    return lines


def _mixing_lines(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    layout = "{:<34}{:<26}{:>10}"
    lines = []
    for case in cases:
        lines.append(layout.format(f"mixed, {case['name']}", "", "images/s"))
        lines += [layout.format("one process", way, f"{rate:,.0f}") for way, rate in case["loop"].items()]
        lines += [layout.format("served", way, f"{rate:,.0f}") for way, rate in case["served"].items()]
        lines.append(f"served {_verdict(case['of_loop'])} of the loop in one process")
    return lines


def _verdict(judged: Mapping[str, Any]) -> str:
    rounds = judged["ratio_rounds"]
    return (
        f"{judged['ratio']:.3f} (in single rounds {min(rounds):.3f} to {max(rounds):.3f}; limit {judged['limit']}: "
        f"{'ok' if judged['is_met'] else 'MISSED'})"
    )
