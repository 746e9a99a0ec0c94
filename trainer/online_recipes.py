"""Recipes of AutoMix and SAMix online with the published settings, for GPUs.

Each comes twice: as the papers mean it, and with `_openmixup` as the public reference computes it, for comparing with
the published numbers (fixed gamma, ELU, one lam per batch, a head and a loss for clean images, and its schedules of the
mask loss). Learning rates here fall per step, there per epoch. Lambda curves stand in no
paper; both take them from the reference.
"""

from dataclasses import replace

from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.presets import RESNET18, RESNET50
from samix.mixing.schedules import MaskSchedule
from trainer.config import TrainConfig
from trainer.methods.config import CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.mixing import MixingConfig
from trainer.published_recipes import CIFAR100, CUB, TINY_IMAGENET, imagenet


def _online(config: TrainConfig, online: CoTrainingConfig, mixers: OptimiserConfig, *, min_lr: float) -> TrainConfig:
    """Let a recipe train its mixer; rates that stay high to the end keep the momentum copy moving."""
    return replace(
        config,
        mixing=MixingConfig(policy="online"),
        online=replace(online, mixer_optimiser=mixers),
        optimiser=replace(config.optimiser, min_lr=min_lr),
    )


def _cifar100(online: CoTrainingConfig) -> TrainConfig:
    return _online(CIFAR100, online, OptimiserConfig(lr=0.1, min_lr=0.05), min_lr=0.05)


def _tiny_imagenet(online: CoTrainingConfig) -> TrainConfig:
    return _online(TINY_IMAGENET, online, OptimiserConfig(lr=0.1, min_lr=0.001), min_lr=0.05)


def _imagenet(backbone: BackboneSpec, online: CoTrainingConfig) -> TrainConfig:
    return _online(imagenet(backbone), online, OptimiserConfig(lr=0.1, min_lr=0.001, momentum=0.0), min_lr=0.0)


def _cub(online: CoTrainingConfig) -> TrainConfig:
    mixers = OptimiserConfig(lr=0.01, min_lr=0.0005, weight_decay=5e-4)
    return _online(CUB, replace(online, no_fixed_points=True), mixers, min_lr=0.0)


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

ONLINE_RECIPES: dict[str, tuple[str, TrainConfig]] = {
    name: recipe
    for plain, (text, config, schedule) in _RECIPES.items()
    for name, recipe in (
        (plain, (text, config)),
        (f"{plain}_openmixup", (f"{text[:-1]}, bug for bug.", _as_openmixup(config, schedule))),
    )
}
"""By name, what they are and the full configuration."""
