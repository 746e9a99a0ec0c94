"""One step of the loop: micro-batches averaged, dropout seeded, the averages of all of it told."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.classifier import Classifier
from samix.mixing.optimise import OptimiserConfig, RunLength
from samix.mixing.update import Update
from trainer.loop import Precision, Step, Stepping, train_epoch
from trainer.methods.method import Losses, Method
from trainer.metrics import TrainerMetrics

PLAIN = OptimiserConfig(lr=0.1, min_lr=0.1, momentum=0.0)
LENGTH = RunLength(steps_per_epoch=4, epochs=1)


class Points(Method):
    """A linear model of points [B, 3] whose loss is the mean of its outputs' squares, with dropout in front."""

    def __init__(self, dropout: float = 0.0) -> None:
        channels = (0.5, 0.5, 0.5)
        spec = BackboneSpec(name="resnet18", layers=(1, 1, 1, 1), channels=(4, 4, 4, 4))
        super().__init__(Classifier.build(spec, 2, mean=channels, std=channels, seed=0))
        linear = nn.Linear(3, 2, bias=False)
        nn.init.normal_(linear.weight, generator=torch.Generator().manual_seed(0))
        self.model = nn.Sequential(nn.Dropout(dropout), linear)
        self.updates: list[Tensor] = []

    def forward(self, item: Tensor) -> Losses:
        loss = self.model(item).square().mean()
        return Losses(total=2 * loss, classifier=loss.detach(), figures={"first": item[0, 0]})

    def updated(self, item: Tensor) -> None:
        self.updates.append(item)


def points(seed: int, size: int = 8) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(seed))


def train(
    method: Points, items: Sequence[Tensor], *, micro_batches: int = 1, precision: Precision = "fp32", first: int = 0
) -> list[Step]:
    update = Update.of([(PLAIN, method.model)], LENGTH)
    stepping = Stepping(precision=precision, micro_batches=micro_batches)
    metrics = TrainerMetrics(0)
    return list(
        train_epoch(
            method, method, items, update, metrics, seeds=lambda step: step, stepping=stepping, first_step=first
        )
    )


def test_micro_batches_make_the_step_of_the_whole_batch():
    """Two gathered halves move the weights as the whole does and tell its loss; the method hears of one step."""
    whole, halves = Points(), Points()
    batches = [points(seed) for seed in range(3)]

    expected = train(whole, batches)
    found = train(halves, [half for batch in batches for half in batch.chunk(2)], micro_batches=2)

    torch.testing.assert_close(halves.model[1].weight, whole.model[1].weight)
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected])
    assert [step.images for step in found] == [8, 8, 8]
    assert len(halves.updates) == 3


def test_figures_are_averages_over_micro_batches():
    """What else a method measured is averaged over a step."""
    items = [torch.full((4, 3), value) for value in (1.0, 3.0)]

    (step,) = train(Points(), items, micro_batches=2)

    assert step.figures == {"first": 2.0}


def test_dropout_depends_on_the_number_of_the_step():
    """A step drops the same whether the steps before it were done in this process or in one that ended."""
    whole, broken = Points(dropout=0.5), Points(dropout=0.5)
    batches = [points(seed) for seed in range(3)]

    expected = train(whole, batches)
    found = [*train(broken, batches[:2]), *train(broken, batches[2:], first=2)]

    assert [step.loss for step in found] == [step.loss for step in expected]
    (other,) = train(Points(dropout=0.5), batches[:1], first=7)
    assert other.loss != expected[0].loss


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_runs_the_network_in_it(precision: Precision):
    """Under autocast the network computes in the lower precision, the weights stay float32, the loss is close."""
    (expected,), (found,) = train(Points(), [points(0)]), train(method := Points(), [points(0)], precision=precision)

    assert found.loss != expected.loss
    assert found.loss == pytest.approx(expected.loss, rel=0.05)
    assert method.model[1].weight.dtype == torch.float32


def test_a_loss_that_is_no_number_ends_the_epoch():
    """An infinite loss is an error that names the rate and the cure."""
    with pytest.raises(ConfigError, match=r"the loss became inf at learning rate 0\.1; lower --optimiser\.lr"):
        train(Points(), [torch.full((4, 3), 1e30)])
