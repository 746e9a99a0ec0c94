"""Optimisers step together, each at its own rate: a line up and half a cosine down."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from trainer.optimise import OptimiserConfig, Update, build_optimiser, build_schedule, cosine_share

SGD = OptimiserConfig(lr=0.1)
ADAMW = OptimiserConfig(kind="adamw", lr=0.01, weight_decay=0.0)


def rates(config: OptimiserConfig, total_steps: int) -> list[float]:
    optimiser = build_optimiser(config, [nn.Parameter(torch.zeros(1))])
    schedule = build_schedule(config, optimiser, total_steps)
    found = []
    for _ in range(total_steps + 1):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


class Pair:
    """Two parameters, each with an optimiser of its own, that are pulled to 1 and -1."""

    def __init__(self, first: OptimiserConfig = SGD, second: OptimiserConfig = ADAMW) -> None:
        self.first, self.second = (nn.Parameter(torch.zeros(3)) for _ in range(2))
        self.update = Update.of([(first, [self.first]), (second, [self.second])], total_steps=10)

    def loss(self) -> Tensor:
        return (self.first - 1).square().sum() + (self.second + 1).square().sum()

    def train(self, steps: int) -> list[Tensor]:
        for _ in range(steps):
            self.update.apply(self.loss())
        return [self.first.detach().clone(), self.second.detach().clone()]


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


@pytest.mark.parametrize(
    ("config", "kind", "settings"),
    [
        (OptimiserConfig(momentum=0.8, weight_decay=0.01), torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.01}),
        (
            OptimiserConfig(kind="adamw", lr=0.3, weight_decay=0.02),
            torch.optim.AdamW,
            {"lr": 0.3, "weight_decay": 0.02},
        ),
    ],
)
def test_weights_follow_the_settings(config: OptimiserConfig, kind: type, settings: dict[str, float]):
    """The settings reach an optimiser of the kind that was asked for."""
    optimiser = build_optimiser(config, [nn.Parameter(torch.zeros(1))])

    assert type(optimiser) is kind
    assert optimiser.defaults.items() >= settings.items()


def test_what_does_not_learn_is_left_out():
    """A fixed parameter, such as a gamma that is not learnable, is none of the optimiser's."""
    free, fixed = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)

    (group,) = build_optimiser(SGD, [fixed, free]).param_groups

    assert [id(parameter) for parameter in group["params"]] == [id(free)]


def test_everything_steps_once_at_its_own_rate():
    """One backward moves both parameters, by their own optimisers; the rate that is shown is the classifier's."""
    pair = Pair()
    before = pair.update.lr

    first, second = pair.train(1)

    torch.testing.assert_close(first, torch.full((3,), 0.1 * 2))  # rate times gradient
    torch.testing.assert_close(second, torch.full((3,), -0.01))  # the first step of Adam is as long as its rate
    assert before == 0.1
    assert pair.update.lr == pytest.approx(0.1 * cosine_share(1, 10, 0, 0))


def test_gradients_do_not_pile_up():
    """Each step uses the gradient of its own loss alone."""
    pair = Pair(OptimiserConfig(momentum=0.0, weight_decay=0.0, min_lr=0.1), ADAMW)

    first, _ = pair.train(2)

    torch.testing.assert_close(first, torch.full((3,), 0.2 + 0.1 * 2 * (1 - 0.2)))


def test_state_is_taken_up_again():
    """Momenta, moments and schedules of all optimisers go on from where they were."""
    whole, broken, resumed = Pair(), Pair(), Pair()
    expected = whole.train(6)

    weights = broken.train(3)
    resumed.update.load_state_dict(broken.update.state_dict())
    with torch.no_grad():
        resumed.first.copy_(weights[0])
        resumed.second.copy_(weights[1])

    for found, value in zip(resumed.train(3), expected, strict=True):
        assert torch.equal(found, value)
    assert resumed.update.lr == whole.update.lr


@pytest.mark.parametrize(
    "others",
    [
        [(SGD, [nn.Parameter(torch.zeros(3))])],
        [(SGD, [nn.Parameter(torch.zeros(3))]), (ADAMW, [nn.Parameter(torch.zeros(3)) for _ in range(2)])],
        [(ADAMW, [nn.Parameter(torch.zeros(3))]), (ADAMW, [nn.Parameter(torch.zeros(3))])],
    ],
    ids=["one optimiser", "another parameter", "another kind"],
)
def test_state_of_other_optimisers_is_refused(others: list[Any]):
    """A state with fewer optimisers or more parameters belongs to another run."""
    pair = Pair()
    pair.train(1)

    with pytest.raises(ValueError, match=r"trained with SGD and AdamW, not|doesn't match"):
        Update.of(others, total_steps=10).load_state_dict(pair.update.state_dict())


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
