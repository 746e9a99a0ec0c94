"""Optimisers step together, each at its own rate, over gradients that are gathered, scaled and clipped."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samix.mixing.optimise import OptimiserConfig, RunLength, cosine_share
from samix.mixing.update import Update

SGD = OptimiserConfig(lr=0.1)
ADAMW = OptimiserConfig(kind="adamw", lr=0.01, weight_decay=0.0)
PLAIN = OptimiserConfig(lr=0.1, min_lr=0.1, momentum=0.0, weight_decay=0.0)
LENGTH = RunLength(steps_per_epoch=10, epochs=1)


def parameters(count: int = 1) -> nn.Module:
    return nn.ParameterList([nn.Parameter(torch.zeros(3)) for _ in range(count)])


class Pair:
    """Two parameters, each with an optimiser of its own, that are pulled to 1 and -1."""

    def __init__(self, first: OptimiserConfig = SGD, second: OptimiserConfig = ADAMW, **settings: Any) -> None:
        one, other = parameters(), parameters()
        (self.first,), (self.second,) = one.parameters(), other.parameters()
        self.update = Update.of([(first, one), (second, other)], LENGTH, **settings)

    def loss(self) -> Tensor:
        return (self.first - 1).square().sum() + (self.second + 1).square().sum()

    def train(self, steps: int) -> list[Tensor]:
        for _ in range(steps):
            self.update.backward(self.loss())
            self.update.step()
        return [self.first.detach().clone(), self.second.detach().clone()]


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
    """Each step uses the gradients gathered since the last one alone."""
    pair = Pair(PLAIN)

    first, _ = pair.train(2)

    torch.testing.assert_close(first, torch.full((3,), 0.2 + 0.1 * 2 * (1 - 0.2)))


def test_gradients_are_gathered_until_a_step():
    """Two backwards and a step move as far as their sum does."""
    pair = Pair(PLAIN)

    for _ in range(2):
        pair.update.backward(pair.loss() / 2)
    pair.update.step()

    torch.testing.assert_close(pair.first.detach(), torch.full((3,), 0.1 * 2))


@pytest.mark.parametrize(("norm", "length"), [(0.5, 0.5), (100.0, 12**0.5), (0.0, 12**0.5)])
def test_long_gradients_are_shortened(norm: float, length: float):
    """A gradient longer than clip_norm is shortened to it, each optimiser's by itself; others stay as they are."""
    pair = Pair(OptimiserConfig(lr=0.1, momentum=0.0, weight_decay=0.0, clip_norm=norm), PLAIN)

    first, second = pair.train(1)

    assert first.norm().item() == pytest.approx(0.1 * length, rel=1e-5)
    assert second.norm().item() == pytest.approx(0.1 * 12**0.5)


def test_a_scaled_loss_makes_the_same_step():
    """Scaling the loss for float16 changes no weight."""
    plain, scaled = (Pair(OptimiserConfig(clip_norm=0.5), scales_loss=scales).train(3) for scales in (False, True))

    for expected, found in zip(plain, scaled, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_gradient_that_overflows_costs_its_step():
    """With a scaled loss, an infinite gradient changes no weight, halves the scale, and the step counts as one."""
    pair = Pair(PLAIN, PLAIN, scales_loss=True)
    scale = pair.update.state_dict()["scaler"]["scale"]

    pair.update.backward(pair.loss() * float("inf"))
    pair.update.step()

    assert not pair.first.any()
    assert pair.update.state_dict()["scaler"]["scale"] == scale / 2
    assert pair.update.state_dict()["steps_done"] == 1


@pytest.mark.parametrize("scales_loss", [False, True])
def test_state_is_taken_up_again(scales_loss: bool):
    """Momenta, moments, rates and scale go on from where they were."""
    whole, broken, resumed = (Pair(scales_loss=scales_loss) for _ in range(3))
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
    ("others", "settings"),
    [
        ([(SGD, 1)], {}),
        ([(SGD, 1), (ADAMW, 2)], {}),
        ([(ADAMW, 1), (ADAMW, 1)], {}),
        ([(SGD, 1), (ADAMW, 1)], {"scales_loss": True}),
    ],
    ids=["one optimiser", "another parameter", "another kind", "fp16"],
)
def test_state_of_other_optimisers_is_refused(others: list[Any], settings: dict[str, Any]):
    """A state with fewer optimisers, more parameters or another precision belongs to another run."""
    pair = Pair()
    pair.train(1)
    modules = [(config, parameters(count)) for config, count in others]

    with pytest.raises(ValueError, match=r"trained with SGD and AdamW, not|doesn't match|in fp16"):
        Update.of(modules, LENGTH, **settings).load_state_dict(pair.update.state_dict())
