"""An optimiser and its learning rate follow the config."""

from typing import Any

import pytest
import torch
from timm.optim.lamb import Lamb
from torch import nn

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.classifier import Classifier
from samix.mixing.optimise import OptimiserConfig, RunLength, build_optimiser, cosine_share, rate_at


def rates(config: OptimiserConfig, steps_per_epoch: int, epochs: int = 1) -> list[float]:
    length = RunLength(steps_per_epoch=steps_per_epoch, epochs=epochs)
    return [rate_at(config, length, step) for step in range(length.total_steps + 1)]


def one_parameter() -> nn.Module:
    return nn.ParameterList([nn.Parameter(torch.zeros(1))])


def test_cosine():
    """Without a warm-up the rate starts at its highest, is half at half time and ends at the lowest."""
    found = rates(OptimiserConfig(lr=0.2, min_lr=0.0), 8)

    assert found[0] == 0.2
    assert found[4] == pytest.approx(0.1)
    assert found[8] == pytest.approx(0.0)
    assert found == sorted(found, reverse=True)


def test_warm_up():
    """A warm-up rises in equal steps to the highest rate, from where the cosine falls to the lowest."""
    found = rates(OptimiserConfig(lr=1.0, min_lr=0.1, warmup_epochs=0.5), steps_per_epoch=8, epochs=2)

    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert found[10] == pytest.approx(0.55)
    assert found[16] == pytest.approx(0.1)


def test_stays_at_the_floor_after_the_end():
    """Steps beyond the planned ones keep the lowest rate."""
    assert cosine_share(30, 20, 0, 0.25) == 0.25


def test_rate_of_zero():
    """A rate of 0, for trials, is a schedule like any other."""
    assert rates(OptimiserConfig(lr=0.0), 3) == [0.0] * 4


@pytest.mark.parametrize(
    ("config", "kind", "settings"),
    [
        (OptimiserConfig(momentum=0.8), torch.optim.SGD, {"momentum": 0.8}),
        (OptimiserConfig(kind="adamw", lr=0.3), torch.optim.AdamW, {"lr": 0.3}),
        (OptimiserConfig(kind="lamb", lr=0.3), Lamb, {"lr": 0.3}),
    ],
)
def test_weights_follow_the_settings(config: OptimiserConfig, kind: type, settings: dict[str, float]):
    """The settings reach an optimiser of the kind that was asked for."""
    optimiser = build_optimiser(config, one_parameter())

    assert type(optimiser) is kind
    assert optimiser.defaults.items() >= settings.items()
    assert [group["weight_decay"] for group in optimiser.param_groups] == [config.weight_decay]


def test_what_does_not_learn_is_left_out():
    """A fixed parameter, such as a gamma that is not learnable, is none of the optimiser's."""
    free, fixed = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)

    (group,) = build_optimiser(OptimiserConfig(), nn.ParameterList([fixed, free])).param_groups

    assert [id(parameter) for parameter in group["params"]] == [id(free)]


@pytest.mark.parametrize(
    ("backbone", "excepted"),
    [("resnet18", {"bn1.weight", "bn1.bias", "fc.bias"}), ("deit_small_patch16_224", {"pos_embed", "cls_token"})],
)
def test_norms_biases_and_embeddings_need_not_decay(backbone: str, excepted: set[str]):
    """Without decay_all, vectors and what a network excepts by itself do not decay; everything else does."""
    channels = (0.5, 0.5, 0.5)
    model = Classifier.build(BackboneSpec(name=backbone), 3, mean=channels, std=channels, seed=0)
    names = {id(parameter): name.removeprefix("backbone.") for name, parameter in model.named_parameters()}

    decays, free = build_optimiser(OptimiserConfig(weight_decay=0.3, decay_all=False), model).param_groups

    kept = {names[id(parameter)] for parameter in free["params"]}
    assert (decays["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert kept >= excepted
    assert all(parameter.ndim > 1 for parameter in decays["params"])
    assert len(kept) + len(decays["params"]) == len(names)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"lr": -1.0}, "optimiser.min_lr must lie between 0 and lr, got 0.0 and -1.0"),
        ({"lr": float("nan")}, "got 0.0 and nan"),
        ({"lr": 0.1, "min_lr": 0.2}, "got 0.2 and 0.1"),
        ({"momentum": 1.0}, "optimiser.momentum must be at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1e-4}, "optimiser.weight_decay must be at least 0, got -0.0001"),
        ({"warmup_epochs": -1}, "optimiser.warmup_epochs must be at least 0, got -1"),
        ({"clip_norm": float("inf")}, "optimiser.clip_norm must be at least 0, got inf"),
    ],
)
def test_refuses(settings: dict[str, Any], sentence: str):
    """Settings no optimiser can use are refused with their value, before anything is opened."""
    with pytest.raises(ConfigError, match=sentence):
        OptimiserConfig(**settings)
