"""What `benchmarks.steps` found, as JSON and as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Seconds = Mapping[str, Sequence[float]]
"""For each work its processor time in every round."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Works that are compared with one of them."""

    title: str
    """Heads the section."""
    works: Sequence[str]
    """Names, in the order they are shown."""
    reference: str
    """Which of them has the ratio 1."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """The highest ratio that was promised, by work."""


def summarise(section: Section, seconds: Seconds) -> dict[str, Any]:
    """Reduce the rounds to medians; ratios are taken within a round."""
    reference = seconds[section.reference]
    return {
        "title": section.title,
        "reference": section.reference,
        "works": [_summarise_work(name, seconds[name], reference, section.limits.get(name)) for name in section.works],
    }


def table(sections: Sequence[Mapping[str, Any]]) -> str:
    """Lay the summaries out for a terminal."""
    return "\n\n".join("\n".join(_lines(section)) for section in sections)


def _summarise_work(
    name: str, seconds: Sequence[float], reference: Sequence[float], limit: float | None
) -> dict[str, Any]:
    ratios = [mine / other for mine, other in zip(seconds, reference, strict=True)]
    return {
        "name": name,
        "seconds": round(median(seconds), 5),
        "ratio": round(median(ratios), 4),
        "ratio_rounds": [round(ratio, 4) for ratio in ratios],
        "limit": limit,
        "is_within": None if limit is None else median(ratios) <= limit,
    }


def _lines(section: Mapping[str, Any]) -> list[str]:
    layout = "{:<28}{:>10}{:>8}{:>17}{:>8}  {}"
    return [
        layout.format(section["title"], "seconds", "ratio", "of all rounds", "limit", "").rstrip(),
        *(layout.format(*_cells(work)).rstrip() for work in section["works"]),
    ]


def _cells(work: Mapping[str, Any]) -> tuple[str, ...]:
    lowest, highest = min(work["ratio_rounds"]), max(work["ratio_rounds"])
    has_limit = work["limit"] is not None
    return (
        work["name"],
        f"{work['seconds']:.4f}",
        f"{work['ratio']:.3f}",
        f"{lowest:.3f} to {highest:.3f}",
        f"{work['limit']:.2f}" if has_limit else "",
        ("ok" if work["is_within"] else "over") if has_limit else "",
    )
