"""The learning rate follows a line up and half a cosine down."""

from typing import Any

import pytest
import torch
from torch import nn

from samix.errors import ConfigError
from trainer.optimise import OptimiserConfig, build_schedule, build_sgd, cosine_share


def rates(config: OptimiserConfig, total_steps: int) -> list[float]:
    optimiser = build_sgd(config, [nn.Parameter(torch.zeros(1))])
    schedule = build_schedule(config, optimiser, total_steps)
    found = []
    for _ in range(total_steps + 1):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_cosine():
    """Without a warm-up the rate starts at its highest, is half at half time and ends at the lowest."""
    found = rates(OptimiserConfig(lr=0.2, min_lr=0.0), 8)

    assert found[0] == 0.2
    assert found[4] == pytest.approx(0.1)
    assert found[8] == pytest.approx(0.0)
    assert found == sorted(found, reverse=True)


def test_warm_up():
    """A warm-up rises in equal steps to the highest rate, from where the cosine falls to the lowest."""
    found = rates(OptimiserConfig(lr=1.0, min_lr=0.1, warmup_steps=4), 12)

    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[8] == pytest.approx(0.55)
    assert found[12] == pytest.approx(0.1)


def test_stays_at_the_floor_after_the_end():
    """Steps beyond the planned ones keep the lowest rate."""
    assert cosine_share(30, 20, 0, 0.25) == 0.25


def test_rate_of_zero():
    """A rate of 0, for trials, is a schedule like any other."""
    assert rates(OptimiserConfig(lr=0.0), 3) == [0.0] * 4


def test_weights_follow_the_settings():
    """Momentum and weight decay reach the optimiser."""
    optimiser = build_sgd(OptimiserConfig(momentum=0.8, weight_decay=0.01), [nn.Parameter(torch.zeros(1))])

    assert optimiser.defaults["momentum"] == 0.8
    assert optimiser.defaults["weight_decay"] == 0.01


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "optimiser.min_lr must lie between 0 and lr, got 0.0 and -1.0"),
        ({"lr": float("nan")}, "got 0.0 and nan"),
        ({"lr": 0.1, "min_lr": 0.2}, "got 0.2 and 0.1"),
        ({"momentum": 1.0}, "optimiser.momentum must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1e-4}, "optimiser.weight_decay must be at least 0, got -0.0001"),
        ({"warmup_steps": -1}, "optimiser.warmup_steps must be at least 0, got -1"),
    ],
)
def test_refuses(settings: dict[str, Any], sentence: str):
    """Settings no optimiser can use are refused with their value, before anything is opened."""
    with pytest.raises(ConfigError, match=sentence):
        OptimiserConfig(**settings)
