"""What the endurance benchmark measured beside what was promised."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One figure, and the limit that it has to keep."""

    figure: str
    """What was measured."""
    value: float
    """How much that is."""
    bound: Literal["at least", "at most"]
    """On which side of the limit it has to be."""
    limit: float
    """The last value that is good enough."""
    unit: str = ""
    """Of both."""

    @property
    def is_met(self) -> bool:
        """Whether the limit is kept."""
        return self.value >= self.limit if self.bound == "at least" else self.value <= self.limit

    def __str__(self) -> str:
        value, limit = (f"{number:,.6g}{self.unit}" for number in (self.value, self.limit))
        return f"{self.figure:<62}{value:>14}   {self.bound} {limit:<12}{'ok' if self.is_met else 'MISSED'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PartReport:
    """What one part found."""

    name: str
    """Of the part."""
    checks: Sequence[Check]
    """Its figures that have limits."""
    details: dict[str, Any] = field(default_factory=dict)
    """Everything else worth keeping, for JSON."""

    @property
    def is_met(self) -> bool:
        """Whether all limits are kept."""
        return all(check.is_met for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Spell it in the types of JSON."""
        checks = [{**asdict(check), "is_met": check.is_met} for check in self.checks]
        return {"part": self.name, "is_met": self.is_met, "checks": checks, **self.details}


def table(reports: Sequence[PartReport]) -> str:
    """Lay all checks out for a terminal."""
    return "\n".join(line for report in reports for line in (report.name, *(f"  {check}" for check in report.checks)))
