"""Mixer settings people start from, by use."""

from typing import Literal

from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.encoder import Channels
from samix.mixing.render import Rendering
from samix.mixing.spec import MixerSpec

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2023, 0.1994, 0.2010)
HALF: Channels = (0.5, 0.5, 0.5)

TINY_RESNET = BackboneSpec(name="resnet18", stem="cifar", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))
"""ResNet-10, a quarter of the width, for 32 px on a CPU."""
SMALL_RESNET = BackboneSpec(name="resnet18", stem="cifar", layers=(1, 1, 1, 1), channels=(32, 64, 128, 256))
"""ResNet-10, half of the width, for 32 px on a CPU."""


def samix_spec(
    backbone: BackboneSpec,
    *,
    mean: Channels,
    std: Channels,
    image_size: int,
    stage: int = 2,
    block: BlockSpec | None = None,
    upsampling: Literal["nearest", "bilinear"] = "bilinear",
    lam_margin: float = 0.08,
) -> MixerSpec:
    """Complete SAMix's settings around a ResNet: bilinear masks at stage 2, plain mixing within the margin."""
    first_stride = 1 if backbone.stem == "cifar" else 4
    return MixerSpec(
        backbone=backbone,
        stage=stage,
        block=block or BlockSpec(),
        rendering=Rendering(upsampling=upsampling, lam_margin=lam_margin),
        mean=mean,
        std=std,
        image_size=image_size,
        stride=first_stride * 2**stage,
    )


def tiny_spec() -> MixerSpec:
    """Settings of a mixer that takes milliseconds: 32 px images, 8 x 8 logits."""
    return samix_spec(TINY_RESNET, mean=HALF, std=HALF, image_size=32)


def resnet18_spec() -> MixerSpec:
    """Settings of the papers' light encoder: ResNet-18 at stage 2, 14 x 14 logits at 224 px."""
    return samix_spec(BackboneSpec(name="resnet18"), mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=224)
