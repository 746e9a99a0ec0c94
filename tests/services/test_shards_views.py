"""Sizes and augmentation by config: what is made, what is refused, and that workers and order change nothing."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from shard_making import encoded, noise, write_tar

from samix.errors import ConfigError
from services.shards.augment import CentreCrop, ChangedCrop, PaddedCrop, ResizedCrop
from services.shards.changes import ColourJitter, RandomErasing
from services.shards.config import DataConfig
from services.shards.dataset import BatchRequest, ShardDataset
from services.shards.index import open_shards
from services.shards.loader import train_loader
from services.shards.rand_augment import RandAugment
from services.shards.views import ViewConfig

EVERYTHING: dict[str, Any] = {
    "image_size": 24,
    "augment": "resized_crop",
    "interpolation": "bicubic",
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "erase": 0.5,
}


@pytest.fixture
def jpegs(tmp_path) -> str:
    members: dict[str, bytes] = {}
    for number in range(16):
        members[f"{number:02d}.jpg"] = encoded(noise(number, 40, 50), "JPEG")
        members[f"{number:02d}.cls"] = b"0"
    return str(write_tar(tmp_path / "photos-000000.tar", members))


def test_a_published_recipe_becomes_its_transforms():
    """RandAugment, jitter and erasing follow the crop in this order; evaluation has its own size and none of them."""
    recipe: dict[str, Any] = EVERYTHING | {"image_size": 160, "eval_size": 224, "eval_resize": 236}
    config = ViewConfig(**recipe)

    train, evaluate = config.train_transform(), config.eval_transform()

    assert train == ChangedCrop(
        crop=ResizedCrop(size=160, scale=(0.08, 1.0), flip=True, interpolation="bicubic"),
        changes=(
            RandAugment(policy="rand-m9-mstd0.5-inc1", interpolation="bicubic"),
            ColourJitter(strength=0.4),
            RandomErasing(probability=0.5),
        ),
    )
    assert train.size == 160
    assert evaluate == CentreCrop(size=224, resize=236, interpolation="bicubic")


def test_without_changes_a_view_is_the_crop_alone():
    """The defaults give the plain crops of earlier runs, and evaluation at the training size."""
    config = ViewConfig()

    assert config.train_transform() == PaddedCrop(size=32, padding=4, flip=True)
    assert config.eval_transform() == CentreCrop(size=32, resize=32)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rand_augment": "rand-q3"}, "rand_augment must read like rand-m9-mstd0.5-inc1 or be empty, got 'rand-q3'"),
        ({"color_jitter": 1.5}, r"color_jitter must lie in 0\.\.1, got 1.5"),
        ({"erase": -0.1}, r"erase must be a share in 0\.\.1, got -0.1"),
        ({"eval_size": -1}, "eval_size must not be negative, got -1; 0 is image_size"),
        ({"eval_size": 64, "eval_resize": 48}, "eval_resize must be 0 or at least eval_size 64, got 48"),
        ({"eval_resize": 24}, "eval_resize must be 0 or at least image_size 32, got 24"),
        ({"augment": "none", "erase": 0.25}, "augment none .* got erase 0.25; leave it out, or choose"),
        ({"augment": "none", "rand_augment": "rand-m9"}, "augment none .* got rand_augment rand-m9; leave it out"),
        ({"augment": "none", "color_jitter": 0.4}, "augment none .* got color_jitter 0.4; leave it out"),
        ({"augment": "none", "eval_size": 64}, "augment none .* got eval_size 64; leave it out"),
    ],
)
def test_bad_and_contradictory_settings_are_refused(settings, words):
    """Each refusal names the field and its value, and what to do."""
    with pytest.raises(ConfigError, match=words):
        ViewConfig(**settings)


def test_a_view_does_not_depend_on_the_batch_around_it(jpegs):
    """The same sample of the same epoch has the same pixels alone, in any batch, and not in another epoch."""
    transform = ViewConfig(**EVERYTHING).train_transform()
    dataset = ShardDataset(open_shards(jpegs), transform, num_classes=1, seed=3)

    forwards = dataset.load(BatchRequest(2, np.arange(16))).images
    backwards = dataset.load(BatchRequest(2, np.arange(16)[::-1])).images
    alone = torch.cat([dataset.load(BatchRequest(2, np.array([position]))).images for position in range(16)])
    later = dataset.load(BatchRequest(3, np.arange(16))).images

    dataset.close()
    assert torch.equal(forwards, backwards.flip(0))
    assert torch.equal(forwards, alone)
    assert not torch.equal(forwards, later)


@pytest.mark.slow
def test_a_view_does_not_depend_on_the_workers(jpegs):
    """RandAugment, jitter and erasing give the same batches in this process and in one or two others."""
    config = DataConfig(train=jpegs, val=jpegs, num_classes=1, global_batch=4, **EVERYTHING)

    batches = []
    for num_workers in range(3):
        with train_loader(dataclasses.replace(config, num_workers=num_workers), seed=1) as loader:
            batches.append(torch.cat([batch.images for batch in loader]))

    assert len(batches[0]) == 16
    assert all(torch.equal(batches[0], other) for other in batches[1:])
