"""What one co-training step draws, and settings that are refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import ConfigError
from samix.mixing.online_config import OnlineConfig, draw_step_plans
from samix.mixing.plan import generator_for


@given(seed=st.integers(0, 2**32), size=st.integers(8, 64))
def test_a_step_draws_two_independent_plans(seed: int, size: int):
    """Mixer and student each get lambdas and partners of their own, all from the step's generator."""
    first, second = (draw_step_plans(size, OnlineConfig(), generator_for(seed)) for _ in range(2))

    for plan, again in ((first.mixers, second.mixers), (first.students, second.students)):
        assert torch.equal(plan.lam, again.lam)
        assert torch.equal(plan.partner, again.partner)
    assert not (first.mixers.lam == first.students.lam).any()
    assert not torch.equal(first.mixers.partner, first.students.partner)


def test_the_two_lambdas_are_not_correlated():
    """Over many steps the mixer's lam says nothing about the student's."""
    plans = [draw_step_plans(1, OnlineConfig(), generator_for(0, step)) for step in range(1000)]

    pairs = torch.stack([torch.cat([plan.mixers.lam, plan.students.lam]) for plan in plans], dim=1)

    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 0.1


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (0.25, 250), (1.0, 1000)])
def test_masks_are_adjusted_with_the_given_probability(probability: float, expected: int):
    """mask_adjust is the share of steps whose masks are adjusted; 0 is never, 1 is always."""
    config = OnlineConfig(mask_adjust=probability)

    count = sum(draw_step_plans(2, config, generator_for(0, step)).adjusts for step in range(1000))

    assert count == pytest.approx(expected, abs=40 if 0 < probability < 1 else 0)


def test_plans_follow_the_settings():
    """One lam for the batch, and no image with itself, where the settings say so."""
    config = OnlineConfig(per_sample_lam=False, no_fixed_points=True)

    plans = draw_step_plans(3, config, generator_for(1)).to(torch.device("cpu"))

    for plan in (plans.mixers, plans.students):
        assert len(plan.lam.unique()) == 1
        assert not (plan.partner == torch.arange(3)).any()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"momentum": 0.99, "momentum_end": 0.9}, "momentum <= momentum_end <= 1, got 0.99 and 0.9"),
        ({"momentum": -0.1}, "got -0.1 and"),
        ({"momentum_end": 1.1}, "got 0.999 and 1.1"),
        ({"momentum": float("nan")}, "got nan"),
        ({"mask_adjust": 1.5}, r"mask_adjust must lie in \[0, 1\], got 1.5"),
        ({"momentum_constant_share": -0.1}, "momentum_constant_share must lie .* got -0.1"),
        ({"eta": -1.0}, "must not be negative .* got -1.0, 0.1 and 0.1"),
        ({"mask_weight": float("inf")}, "got 0.5, inf and 0.1"),
        ({"mask_margin": 2.0}, "got 0.5, 0.1 and 2.0"),
        ({"alpha": 0.0}, "alpha must be positive .* got 0.0"),
    ],
)
def test_refuses(settings: dict[str, Any], sentence: str):
    """Settings out of bounds are refused by value."""
    with pytest.raises(ConfigError, match=sentence):
        OnlineConfig(**settings)
