"""Mixer settings people start from, by use."""

from typing import Literal, Required, TypedDict

import torch

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.block import BlockSpec
from samix.mixing.encoder import Channels, feature_stride
from samix.mixing.render import Rendering
from samix.mixing.spec import MixerSpec
from samix.mixing.timm_backbone import fixed_size

IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)
CIFAR_MEAN: Channels = (0.4914, 0.4822, 0.4465)
CIFAR_STD: Channels = (0.2023, 0.1994, 0.2010)
HALF: Channels = (0.5, 0.5, 0.5)

TINY_RESNET = BackboneSpec(name="resnet18", stem="cifar", layers=(1, 1, 1, 1), channels=(16, 32, 64, 128))
"""ResNet-10, a quarter of the width, for 32 px on a CPU."""
SMALL_RESNET = BackboneSpec(name="resnet18", stem="cifar", layers=(1, 1, 1, 1), channels=(32, 64, 128, 256))
"""ResNet-10, half of the width, for 32 px on a CPU."""

RESNET18 = BackboneSpec(name="resnet18")
RESNET18_CIFAR = BackboneSpec(name="resnet18", stem="cifar")
RESNET34 = BackboneSpec(name="resnet34")
RESNET50 = BackboneSpec(name="resnet50")
RESNET101 = BackboneSpec(name="resnet101")
RESNEXT101 = BackboneSpec(name="resnext101_32x4d")
RESNEXT50 = BackboneSpec(name="resnext50_32x4d")
RESNEXT50_CIFAR = BackboneSpec(name="resnext50_32x4d", stem="cifar")
WRN_28_8 = BackboneSpec(name="wide_resnet28_8")
"""Wide-ResNet for 32 px. Published mixers use stage 1, 16 x 16 logits."""
DEIT_SMALL = BackboneSpec(name="deit_small_patch16_224")
"""Published mixers use the sixth block, stage 5: 14 x 14 logits at 224 px."""
SWIN_TINY = BackboneSpec(name="swin_tiny_patch4_window7_224")
"""Stage 2 has 14 x 14 logits at 224 px."""


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
    """Complete SAMix's settings around a backbone: bilinear masks, plain mixing within the margin.

    Args:
        backbone: the network the encoder is cut from.
        mean: of each channel, for images in [0, 1].
        std: of each channel, likewise.
        image_size: side of the images the mixer will be trained on, in pixels.
        stage: whose features are mixed; 2 in the papers (l = 3), 5 of a DeiT, 1 of a Wide-ResNet.
        block: settings of the mixing block; SAMix's without.
        upsampling: of the logits.
        lam_margin: distance of lam from 0 and 1 within which images are mixed plainly.

    Raises:
        ConfigError: if there is no such stage; of a backbone that does not exist at the latest when it is built.
    """
    return MixerSpec(
        backbone=backbone,
        stage=stage,
        block=block or BlockSpec(),
        rendering=Rendering(upsampling=upsampling, lam_margin=lam_margin),
        mean=mean,
        std=std,
        image_size=image_size,
        **_geometry(backbone, stage),
    )


def tiny_spec() -> MixerSpec:
    """Settings of a mixer that takes milliseconds: 32 px images, 8 x 8 logits."""
    return samix_spec(TINY_RESNET, mean=HALF, std=HALF, image_size=32)


def resnet18_spec() -> MixerSpec:
    """Settings of the papers' light encoder: ResNet-18 at stage 2, 14 x 14 logits at 224 px."""
    return samix_spec(RESNET18, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=224)


def wrn_28_8_spec() -> MixerSpec:
    """Settings of the published mixer of a Wide-ResNet-28-8: stage 1, 16 x 16 logits at 32 px."""
    return samix_spec(WRN_28_8, mean=CIFAR_MEAN, std=CIFAR_STD, image_size=32, stage=1)


def deit_small_spec() -> MixerSpec:
    """Settings of the published mixer of a DeiT-S: after its sixth block, 14 x 14 logits at 224 px."""
    return samix_spec(DEIT_SMALL, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=224, stage=5)


def swin_tiny_spec() -> MixerSpec:
    """Settings of a mixer of a Swin-T: stage 2, 14 x 14 logits at 224 px."""
    return samix_spec(SWIN_TINY, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=224)


class _Geometry(TypedDict, total=False):
    stride: Required[int]
    min_side: int
    max_side: int


def _geometry(backbone: BackboneSpec, stage: int) -> _Geometry:
    """Work out the stride of a stage, and the sides an encoder takes where they are not the usual ones."""
    if backbone.name.startswith(("resnet", "resnext")):  # recipes are made at import, and timm takes three seconds
        if not 0 <= stage <= 3:
            raise ConfigError(f"stage must be 0..3 for this backbone, got {stage}")
        return {"stride": (1 if backbone.stem == "cifar" else 4) * 2**stage}
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        network = build_backbone(backbone, num_classes=0)
    stride, size = feature_stride(network, backbone, stage), fixed_size(network)
    if size is None:
        # Some networks round sides down, and one feature is needed.
        return {"stride": stride, "min_side": max(8, stride)}
    return {"stride": stride, "min_side": min(size), "max_side": max(size)}
