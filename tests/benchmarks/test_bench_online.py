"""What the benchmark of online mode concludes, and what it refuses."""

from typing import Any

import pytest

from benchmarks.online import WAYS, OnlineBenchConfig, compare, table
from samix.errors import ConfigError


def runs(top1: list[float], step_ms: float) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "top1": value, "step_ms": step_ms, "wait_share": 0.01, "fallbacks": 0}
        for seed, value in enumerate(top1)
    ]


@pytest.mark.parametrize(
    ("there", "step_ms", "is_as_good", "is_quicker"),
    [([0.50, 0.53], 70, True, True), ([0.49, 0.49], 80, True, True), ([0.40, 0.41], 81, False, False)],
)
def test_a_way_is_as_good_within_the_spread_of_seeds(
    there: list[float], step_ms: float, is_as_good: bool, is_quicker: bool
):
    """Remote is as good if its mean is no more than the spread below, and quicker if its step takes 0.8 at most."""
    both = dict(zip(WAYS, (runs([0.50, 0.53], 100), runs(there, step_ms)), strict=True))

    found = compare(both)

    assert found["spread"] == pytest.approx(0.03)
    assert (found["is_as_good"], found["is_quicker"]) == (is_as_good, is_quicker)
    assert f"{step_ms / 100:.2f} of one in one process" in table({"runs": both, **found})


def test_seeds_must_differ():
    """The same seed twice would make the spread too small."""
    with pytest.raises(ConfigError, match="different"):
        OnlineBenchConfig(train="a", val="b", seeds=(1, 1))
