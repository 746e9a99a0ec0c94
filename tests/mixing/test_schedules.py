"""Schedules, against published figures of the reference."""

import itertools
import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samix.errors import ConfigError
from samix.mixing.schedules import MaskSchedule, ema_momentum, mask_weight


@pytest.mark.parametrize(
    ("step", "momentum"),
    [
        (0, 0.999),
        (99, 0.999),
        (100, 0.999024),
        (250, 0.999146),
        (500, 0.9995),
        (750, 0.999853),
        (1000, 0.999999),
    ],
)
def test_the_momentum_is_the_references(step: int, momentum: float) -> None:
    """Constant for a tenth of the run, then a cosine from the first step on, to 0.999999."""
    assert ema_momentum(step, 1000, start=0.999, end=0.999999) == pytest.approx(momentum, abs=1e-6)


def test_the_constant_part_may_be_longer() -> None:
    """Vision transformers keep the momentum for a quarter of the run."""
    values = [ema_momentum(step, 100, start=0.999, end=0.99996, constant_share=0.25) for step in (24, 25)]

    assert values[0] == 0.999
    assert values[1] > 0.999


@settings(deadline=None)
@given(total_steps=st.integers(2, 500), start=st.floats(0, 0.999), end=st.floats(0.999, 1))
def test_the_momentum_never_falls(total_steps: int, start: float, end: float) -> None:
    """It lies between its start and its end, and reaches the end."""
    values = [ema_momentum(step, total_steps, start=start, end=end) for step in range(total_steps + 1)]

    assert all(before <= after + 1e-15 for before, after in itertools.pairwise(values))
    assert values[0] == start
    assert values[-1] == pytest.approx(end, abs=1e-15)


@pytest.mark.parametrize(
    ("steps_per_epoch", "epochs", "epoch", "weight"),
    [
        (5004, 100, 1, 0.066),
        (5005, 100, 1, 0.066),
        (5004, 100, 2, 0.0037),
        (5005, 100, 2, 0.0037),
        (5004, 100, 3, 1.5e-6),
        (374, 200, 4, 0.061),
        (374, 200, 6, 0.019),
        (374, 200, 10, 4.5e-5),
    ],
)
def test_compounding_collapses_as_in_the_reference(
    steps_per_epoch: int, epochs: int, epoch: int, weight: float
) -> None:
    """Figures measured in the public reference on ImageNet and CUB (B2), to their two digits."""
    computed = mask_weight("compounding", 0.1, epoch * steps_per_epoch, epochs * steps_per_epoch)

    assert computed == pytest.approx(weight, rel=0.03)


@settings(deadline=None)
@given(total_steps=st.integers(1, 300), data=st.data())
def test_compounding_is_the_product_of_the_cosines(total_steps: int, data: st.DataObject) -> None:
    """Every step multiplies what the step before left by (1 + cos(pi t / T)) / 2."""
    step = data.draw(st.integers(0, total_steps))
    weight = 0.1
    for number in range(1, step + 1):
        weight *= (1 + math.cos(math.pi * number / total_steps)) / 2

    assert mask_weight("compounding", 0.1, step, total_steps) == pytest.approx(weight, abs=1e-12)


def test_compounding_ends_in_silence() -> None:
    """Hundreds of thousands of factors underflow to 0 without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        assert mask_weight("compounding", 0.1, 500_400, 500_400) == 0


@pytest.mark.parametrize(("step", "weight"), [(0, 0.1), (25, 0.075), (50, 0.05), (100, 0.0)])
def test_linear_falls_to_zero_at_the_end(step: int, weight: float) -> None:
    """beta of the papers."""
    assert mask_weight("linear", 0.1, step, 100) == pytest.approx(weight)


@pytest.mark.parametrize("kind", ["linear", "constant", "compounding"])
@settings(deadline=None)
@given(base=st.floats(0, 10), step=st.integers(0, 100))
def test_every_schedule_starts_at_its_base_and_never_exceeds_it(kind: MaskSchedule, base: float, step: int) -> None:
    """The first step has the full weight, and no later one has more or a negative one."""
    assert mask_weight(kind, base, 0, 100) == base
    assert 0 <= mask_weight(kind, base, step, 100) <= base
    assert kind != "constant" or mask_weight(kind, base, step, 100) == base


def test_an_unknown_schedule_is_refused() -> None:
    """The message names the schedules there are."""
    with pytest.raises(ConfigError, match="linear, constant or compounding, got 'cosine'"):
        mask_weight("cosine", 0.1, 0, 100)  # type: ignore[arg-type]
