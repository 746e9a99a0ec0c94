"""Recipes of AutoMix and SAMix online with the published settings, for GPUs.

Each comes twice: as the papers mean it, and with `_openmixup` as the public reference computes it, for comparing with
the published numbers (fixed gamma, ELU, one lam per batch, a head and a loss for clean images, and its schedules of the
mask loss). Learning rates here fall per step, there per epoch. Lambda curves stand in no
paper; both take them from the reference.
"""

from dataclasses import replace

import tyro

from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, RESNET18, RESNET18_CIFAR, RESNET50
from samix.mixing.schedules import MaskSchedule
from services.shards.config import DataConfig
from trainer.config import TrainConfig
from trainer.methods.config import CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.mixing import MixingConfig
from trainer.model import ModelConfig
from trainer.optimise import OptimiserConfig

_ONLINE = MixingConfig(policy="online")


def _cifar100(online: CoTrainingConfig) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(train=tyro.MISSING, val=tyro.MISSING, num_classes=100, global_batch=100),
        model=ModelConfig(backbone=RESNET18_CIFAR, mean=CIFAR_MEAN, std=CIFAR_STD),
        mixing=_ONLINE,
        online=replace(online, mixer_optimiser=OptimiserConfig(lr=0.1, min_lr=0.05)),
        # Deliberately high to the end: the momentum copy must go on moving.
        optimiser=OptimiserConfig(lr=0.1, min_lr=0.05),
        epochs=400,
        log_every=100,
    )


def _tiny_imagenet(online: CoTrainingConfig) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            train=tyro.MISSING,
            val=tyro.MISSING,
            num_classes=200,
            image_size=64,
            global_batch=100,
            augment="resized_crop",
        ),
        model=ModelConfig(backbone=RESNET18_CIFAR),
        mixing=_ONLINE,
        online=replace(online, mixer_optimiser=OptimiserConfig(lr=0.1, min_lr=0.001)),
        optimiser=OptimiserConfig(lr=0.2, min_lr=0.05),
        epochs=400,
        log_every=100,
    )


def _imagenet(backbone: BackboneSpec, online: CoTrainingConfig) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            train=tyro.MISSING,
            val=tyro.MISSING,
            num_classes=1000,
            image_size=224,
            global_batch=256,
            augment="resized_crop",
            eval_resize=256,
            num_workers=8,
        ),
        model=ModelConfig(backbone=backbone),
        mixing=_ONLINE,
        online=replace(online, mixer_optimiser=OptimiserConfig(lr=0.1, min_lr=0.001, momentum=0.0)),
        epochs=100,
        log_every=100,
    )


def _cub(online: CoTrainingConfig) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            train=tyro.MISSING,
            val=tyro.MISSING,
            num_classes=200,
            image_size=224,
            global_batch=16,
            augment="resized_crop",
            crop_scale=(0.5, 1.0),
            eval_resize=256,
        ),
        model=ModelConfig(backbone=RESNET18, weights=tyro.MISSING),
        mixing=_ONLINE,
        online=replace(
            online,
            no_fixed_points=True,
            mixer_optimiser=OptimiserConfig(lr=0.01, min_lr=0.0005, weight_decay=5e-4),
        ),
        optimiser=OptimiserConfig(lr=0.001, weight_decay=5e-4),
        epochs=200,
        log_every=100,
    )


_SAMIX = CoTrainingConfig()
_SAMIX_SMALL = replace(_SAMIX, block=BlockSpec(lam_curve=0.25))
_SAMIX_IMAGENET = replace(_SAMIX, block=BlockSpec(dropout=0.1), eta=0.1, momentum_end=0.99999)
_SAMIX_CUB = replace(_SAMIX, block=BlockSpec(lam_curve=1.0, dropout=0.1), momentum_end=0.99999)
_AUTOMIX_SMALL = replace(
    _SAMIX,
    block=BlockSpec(lam_encoding="concat", learnable_gamma=False, content="linear", attention="cross"),
    upsampling="nearest",
    pairwise=False,
    eta=1.0,
    mask_variance=False,
)


def _as_openmixup(config: TrainConfig, schedule: MaskSchedule) -> TrainConfig:
    """Turn a recipe into the public reference's."""
    block = replace(config.online.block, learnable_gamma=False, activation="elu")
    if block.lam_encoding == "concat":
        block = replace(block, lam_encoding="none")  # its AutoMix on CIFAR: the masks do not know lam at all
    online = replace(
        config.online,
        mode="openmixup",
        block=block,
        per_sample_lam=False,
        mask_schedule=schedule,
    )
    return replace(config, online=online, objective=ObjectiveConfig(clean_weight=1.0))


_RECIPES: dict[str, tuple[str, TrainConfig, MaskSchedule]] = {
    "cifar100_r18_automix": (
        "CIFAR-100, ResNet-18, AutoMix online, 400 epochs.",
        _cifar100(_AUTOMIX_SMALL),
        "constant",
    ),
    "cifar100_r18_samix": ("CIFAR-100, ResNet-18, SAMix online, 400 epochs.", _cifar100(_SAMIX_SMALL), "constant"),
    "tiny_r18_samix": ("Tiny-ImageNet, ResNet-18, SAMix online, 400 epochs.", _tiny_imagenet(_SAMIX), "constant"),
    "imagenet_r18_samix_100ep": (
        "ImageNet-1k, ResNet-18, SAMix online, 100 epochs.",
        _imagenet(RESNET18, _SAMIX_IMAGENET),
        "compounding",
    ),
    "imagenet_r50_samix_100ep": (
        "ImageNet-1k, ResNet-50, SAMix online, 100 epochs.",
        _imagenet(RESNET50, _SAMIX_IMAGENET),
        "compounding",
    ),
    "cub_r18_samix": (
        "CUB-200, ResNet-18 from ImageNet weights, SAMix online, 200 epochs.",
        _cub(_SAMIX_CUB),
        "compounding",
    ),
}

PUBLISHED_RECIPES: dict[str, tuple[str, TrainConfig]] = {
    name: recipe
    for plain, (text, config, schedule) in _RECIPES.items()
    for name, recipe in (
        (plain, (text, config)),
        (f"{plain}_openmixup", (f"{text[:-1]}, bug for bug.", _as_openmixup(config, schedule))),
    )
}
"""By name, what they are and the full configuration."""
