"""Recipes of the trainer: full configurations by name. Give the shards and the output folder as flags."""

import tyro

from samix.mixing.backbone import BackboneSpec
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, HALF, SMALL_RESNET, TINY_RESNET
from services.shards.config import DataConfig
from trainer.config import TrainConfig
from trainer.methods.config import QUICK, QUICKEST
from trainer.mixing import MixingConfig
from trainer.model import ModelConfig
from trainer.online_recipes import ONLINE_RECIPES
from trainer.published_recipes import PUBLISHED_RECIPES
from trainer.session_recipes import SESSION_RECIPES, on_server
from trainer.sessions.config import CoTrainingSessionConfig

_DIGITS = TrainConfig(
    data=DataConfig(
        train=tyro.MISSING,
        val=tyro.MISSING,
        num_classes=10,
        image_size=16,
        global_batch=64,
        flip=False,
        padding=2,
        num_workers=0,
    ),
    model=ModelConfig(backbone=TINY_RESNET, mean=HALF, std=HALF),
    online=QUICKEST,
    mixing=MixingConfig(alpha=1.0),  # with 2, as published for longer runs, 25 epochs are too few
    optimiser=OptimiserConfig(lr=0.1, weight_decay=5e-4),
    epochs=25,
    log_every=100,
)
_CIFAR = TrainConfig(
    data=DataConfig(train=tyro.MISSING, val=tyro.MISSING, num_classes=20, global_batch=128, num_workers=1),
    model=ModelConfig(backbone=SMALL_RESNET, mean=CIFAR_MEAN, std=CIFAR_STD),
    online=QUICK,
    optimiser=OptimiserConfig(lr=0.1, weight_decay=5e-4),
    epochs=5,
)
_CIFAR_TINY = TrainConfig(
    data=DataConfig(train=tyro.MISSING, val=tyro.MISSING, num_classes=20, global_batch=100, num_workers=1),
    model=ModelConfig(backbone=TINY_RESNET, mean=CIFAR_MEAN, std=CIFAR_STD),
    online=QUICK,
    optimiser=OptimiserConfig(lr=0.1, weight_decay=5e-4),
    precision="bf16",
    epochs=12,
)
_SMALL = TrainConfig(
    data=DataConfig(
        train=tyro.MISSING,
        val=tyro.MISSING,
        num_classes=10,
        image_size=64,
        global_batch=32,
        augment="resized_crop",
        crop_scale=(0.25, 1.0),
        num_workers=1,
    ),
    model=ModelConfig(backbone=BackboneSpec(name="resnet18", layers=(1, 1, 1, 1), channels=(32, 64, 128, 256))),
    online=QUICK,
    optimiser=OptimiserConfig(lr=0.05),
    epochs=5,
    log_every=5,
)
_PHOTO = TrainConfig(
    data=DataConfig(
        train=tyro.MISSING,
        val=tyro.MISSING,
        num_classes=1000,
        image_size=224,
        global_batch=16,
        augment="resized_crop",
        eval_resize=256,
        num_workers=1,
    ),
    model=ModelConfig(backbone=BackboneSpec(name="resnet18")),
    online=QUICK,
    mixing=MixingConfig(deadline_s=30.0),  # a CPU server takes a second for 16 photographs
    optimiser=OptimiserConfig(lr=0.05),
    epochs=1,
    log_every=5,
)

RECIPES: dict[str, tuple[str, TrainConfig]] = {
    "digits_cpu": ("Handwritten digits at 16 px, ResNet-10 of a quarter width: seconds per epoch on a CPU.", _DIGITS),
    "cifar_cpu": ("CIFAR at 32 px, ResNet-10 of half width: a minute per 10,000 images on two cores.", _CIFAR),
    "cifar_tiny_cpu": ("CIFAR at 32 px, ResNet-10 of a quarter width, in bf16: the accuracy table's.", _CIFAR_TINY),
    "cifar_online_cpu": (
        "The same with the mixer trained by a server on this machine: needs samix serve --online.memory-mib 1024.",
        on_server(_CIFAR_TINY, CoTrainingSessionConfig(), deadline_s=30.0),
    ),
    "small_cpu": ("Photographs at 64 px, ResNet-10 of half width, for a CPU.", _SMALL),
    "photo_cpu": ("Photographs at 224 px with ImageNet's augmentation, ResNet-18: one epoch on a CPU.", _PHOTO),
    **PUBLISHED_RECIPES,
    **ONLINE_RECIPES,
    **SESSION_RECIPES,
}
