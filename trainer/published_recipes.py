"""Recipes with the published settings for classifiers, mixed by a frozen mixer on a server; for GPUs.

Any other policy is a flag away: `--mixing.policy cutmix` trains the baseline that mixers are compared with. Rates of
learning fall per step; the public reference lowers most of them per epoch.
"""

from dataclasses import replace

import tyro

from samix.mixing.backbone import BackboneSpec
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.presets import (
    CIFAR_MEAN,
    CIFAR_STD,
    DEIT_SMALL,
    RESNET18,
    RESNET18_CIFAR,
    RESNET34,
    RESNET50,
    RESNET101,
    RESNEXT101,
    SWIN_TINY,
)
from services.shards.config import DataConfig
from trainer.config import TrainConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.model import ModelConfig

CIFAR100 = TrainConfig(
    data=DataConfig(train=tyro.MISSING, val=tyro.MISSING, num_classes=100, global_batch=100),
    model=ModelConfig(backbone=RESNET18_CIFAR, mean=CIFAR_MEAN, std=CIFAR_STD),
    optimiser=OptimiserConfig(lr=0.1),
    epochs=400,
    log_every=100,
)
TINY_IMAGENET = TrainConfig(
    data=DataConfig(
        train=tyro.MISSING,
        val=tyro.MISSING,
        num_classes=200,
        image_size=64,
        global_batch=100,
        augment="resized_crop",
        interpolation="bicubic",
    ),
    model=ModelConfig(backbone=RESNET18_CIFAR),
    optimiser=OptimiserConfig(lr=0.2),
    epochs=400,
    log_every=100,
)
CUB = TrainConfig(
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
    optimiser=OptimiserConfig(lr=0.001, weight_decay=5e-4),
    epochs=200,
    log_every=100,
)
_IMAGENET_DATA = DataConfig(
    train=tyro.MISSING,
    val=tyro.MISSING,
    num_classes=1000,
    image_size=224,
    global_batch=256,
    augment="resized_crop",
    interpolation="bicubic",
    eval_resize=256,
    num_workers=8,
    skip_budget=100,  # a run of days need not end for some bytes; what is skipped is logged and counted
)


def imagenet(backbone: BackboneSpec, epochs: int = 100) -> TrainConfig:
    """Make the plain recipe, which torchvision's and PyTorch's examples share."""
    return TrainConfig(
        data=_IMAGENET_DATA,
        model=ModelConfig(backbone=backbone),
        optimiser=OptimiserConfig(lr=0.1),
        epochs=epochs,
        log_every=100,
    )


_RSB_A3 = TrainConfig(
    data=replace(
        _IMAGENET_DATA,
        image_size=160,
        eval_size=224,
        eval_resize=236,
        global_batch=2048,
        rand_augment="rand-m6-mstd0.5-inc1",
    ),
    model=ModelConfig(backbone=RESNET50),
    objective=ObjectiveConfig(loss="bce"),
    optimiser=OptimiserConfig(
        kind="lamb", lr=0.008, min_lr=1e-6, weight_decay=0.02, decay_all=False, warmup_epochs=5.0
    ),
    precision="fp16",
    sync_bn=True,
    epochs=100,
    log_every=50,
)
_DEIT = TrainConfig(
    # timm applies no colour jitter beside RandAugment, so DeiT's 0.4 was never applied.
    data=replace(_IMAGENET_DATA, global_batch=1024, rand_augment="rand-m9-mstd0.5-inc1", erase=0.25),
    model=ModelConfig(backbone=DEIT_SMALL, drop_path=0.1),
    objective=ObjectiveConfig(label_smoothing=0.1),
    optimiser=OptimiserConfig(
        kind="adamw", lr=1e-3, min_lr=1e-5, weight_decay=0.05, decay_all=False, clip_norm=5.0, warmup_epochs=5.0
    ),
    precision="fp16",
    epochs=300,
    log_every=50,
)
_SWIN = replace(
    _DEIT,
    model=ModelConfig(backbone=SWIN_TINY, drop_path=0.2),
    optimiser=replace(_DEIT.optimiser, warmup_epochs=20.0),
)

_BACKBONES = {
    "r18": ("ResNet-18", RESNET18),
    "r34": ("ResNet-34", RESNET34),
    "r50": ("ResNet-50", RESNET50),
    "r101": ("ResNet-101", RESNET101),
    "rx101": ("ResNeXt-101 (32x4d)", RESNEXT101),
}

PUBLISHED_RECIPES: dict[str, tuple[str, TrainConfig]] = {
    "cifar100_r18": ("CIFAR-100, ResNet-18, 400 epochs.", CIFAR100),
    "tiny_r18": ("Tiny-ImageNet, ResNet-18, 400 epochs.", TINY_IMAGENET),
    "cub_r18": ("CUB-200, ResNet-18 from ImageNet weights, 200 epochs.", CUB),
    **{
        f"imagenet_{short}_{epochs}ep": (f"ImageNet-1k, {name}, {epochs} epochs.", imagenet(backbone, epochs))
        for short, (name, backbone) in _BACKBONES.items()
        for epochs in (100, 300)
    },
    "imagenet_r50_rsb_a3": ("ImageNet-1k at 160 px, ResNet-50, the A3 of ResNet strikes back, 100 epochs.", _RSB_A3),
    "imagenet_deit_s_300ep": ("ImageNet-1k, DeiT-S, 300 epochs.", _DEIT),
    "imagenet_swin_t_300ep": ("ImageNet-1k, Swin-T, 300 epochs.", _SWIN),
}
"""By name, what they are and the full configuration."""
