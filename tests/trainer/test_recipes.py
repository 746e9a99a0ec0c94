"""Every recipe is a configuration that can be run as it is, with shards and an output folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samix.mixing.frozen import random_mixer
from samix.mixing.optimise import RunLength
from services.config import parse_recipe
from trainer.methods.build import build_method
from trainer.methods.online import CoTraining
from trainer.model import build_classifier
from trainer.pretrain_config import PRETRAIN_RECIPES
from trainer.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_model_takes_the_images(name: str):
    """The model of a training recipe ranks all its classes, for images of the recipe's size."""
    config = RECIPES[name][1]
    side = config.data.image_size

    model = build_classifier(replace(config.model, weights=""), config.data.num_classes, seed=config.seed)

    assert model.eval()(torch.rand(2, 3, side, side)).shape == (2, config.data.num_classes)


@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_mixer_takes_the_images(name: str):
    """The mixer of a pretraining recipe mixes images of the recipe's size, and states that size."""
    config = PRETRAIN_RECIPES[name][1]
    side = config.loading.image_size
    spec = config.online.mixer_spec(config.model, side)

    mixed = random_mixer(spec, seed=0, name=name).mix(torch.rand(2, 3, side, side), seed=0)

    assert mixed.masks.shape == (2, 1, side, side)
    assert spec.image_size == side


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained_online(name: str):
    """`--mixing.policy online` works with each recipe: its mixer fits model and images, in the recipe's mode."""
    config = RECIPES[name][1]
    model, mixing = replace(config.model, weights=""), replace(config.mixing, policy="online")
    config = replace(config, model=model, mixing=mixing)

    method, _ = build_method(config, RunLength(steps_per_epoch=10, epochs=1), torch.device("cpu"))

    assert isinstance(method, CoTraining)
    assert method.online.spec.mode == config.online.mode
    assert method.online.freeze(name).spec.image_size == config.data.image_size


@pytest.mark.parametrize(
    "name",
    [
        "cifar100_r18_automix",
        "cifar100_r18_samix",
        "tiny_r18_samix",
        "imagenet_r18_samix_100ep",
        "imagenet_r50_samix_100ep",
        "cub_r18_samix",
    ],
)
def test_published_recipes_come_in_both_modes(name: str):
    """Each is there as the papers mean it, and with a twin that differs by the public reference's choices alone."""
    paper, reference = RECIPES[name][1], RECIPES[f"{name}_openmixup"][1]
    online = reference.online

    assert (paper.online.mode, online.mode) == ("paper", "openmixup")
    assert paper.mixing.policy == reference.mixing.policy == "online"
    assert (online.per_sample_lam, online.block.learnable_gamma, online.block.activation) == (False, False, "elu")
    assert (paper.objective.clean_weight, reference.objective.clean_weight) == (0.0, 1.0)
    assert replace(reference, online=paper.online, objective=paper.objective) == paper


@pytest.mark.parametrize("name", RECIPES)
def test_training_recipe_from_the_command_line(name: str):
    """The flags of a training recipe change what they name and leave everything else as it is."""
    flags = ["--data.train", "a.tar", "--data.val", "b.tar", "--model.weights", "c.pth"]

    parsed = parse_recipe(RECIPES, "train", [name, *flags], environ={})

    recipe = RECIPES[name][1]
    data, model = replace(recipe.data, train="a.tar", val="b.tar"), replace(recipe.model, weights="c.pth")
    assert parsed == (name, replace(recipe, data=data, model=model))


@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_pretraining_recipe_from_the_command_line(name: str):
    """The same holds for a pretraining recipe."""
    parsed = parse_recipe(PRETRAIN_RECIPES, "pretrain", [name, "--data", "a.tar", "--out", "m.safetensors"], environ={})

    assert parsed == (name, replace(PRETRAIN_RECIPES[name][1], data="a.tar", out=Path("m.safetensors")))


@pytest.mark.parametrize(("recipes", "program"), [(RECIPES, "train"), (PRETRAIN_RECIPES, "pretrain")])
def test_shards_must_be_named(recipes: Any, program: str, capsys: pytest.CaptureFixture[str]):
    """A recipe without its shards exits with 2 and names the flag."""
    with pytest.raises(SystemExit) as refusal:
        parse_recipe(recipes, program, [next(iter(recipes))], environ={})

    assert refusal.value.code == 2
    assert "--data" in capsys.readouterr().err


def test_model_is_the_same_on_every_rank():
    """Weights depend on the seed only, and drawing them leaves torch's global random state alone."""
    config = RECIPES["digits_cpu"][1]
    before = torch.random.get_rng_state()

    first, second = (build_classifier(config.model, 10, seed=5) for _ in range(2))

    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
