"""Every recipe is a configuration that can be run as it is, with shards and an output folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samix.mixing.frozen import random_mixer
from services.config import parse_recipe
from trainer.model import build_classifier
from trainer.pretrain_config import PRETRAIN_RECIPES
from trainer.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_model_takes_the_images(name: str):
    """The model of a training recipe ranks all its classes, for images of the recipe's size."""
    config = RECIPES[name][1]
    side = config.data.image_size

    model = build_classifier(config.model, config.data.num_classes, seed=config.seed)

    assert model.eval()(torch.rand(2, 3, side, side)).shape == (2, config.data.num_classes)


@pytest.mark.parametrize("name", PRETRAIN_RECIPES)
def test_mixer_takes_the_images(name: str):
    """The mixer of a pretraining recipe mixes images of the recipe's size, and states that size."""
    config = PRETRAIN_RECIPES[name][1]
    side = config.loading.image_size

    mixed = random_mixer(config.mixer, seed=0, name=name).mix(torch.rand(2, 3, side, side), seed=0)

    assert mixed.masks.shape == (2, 1, side, side)
    assert config.mixer.image_size == side


@pytest.mark.parametrize("name", RECIPES)
def test_training_recipe_from_the_command_line(name: str):
    """The flags of a training recipe change what they name and leave everything else as it is."""
    flags = ["--data.train", "a.tar", "--data.val", "b.tar"]

    parsed = parse_recipe(RECIPES, "train", [name, *flags], environ={})

    recipe = RECIPES[name][1]
    assert parsed == (name, replace(recipe, data=replace(recipe.data, train="a.tar", val="b.tar")))


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
