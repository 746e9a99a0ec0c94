"""Mixers of the public reference implementation, OpenMixup: from its checkpoint to our settings and weights.

The lambda curve and the normalisation do not show in a checkpoint, and guessed wrong they give masks that look right:
they are asked for. `backbone_k.`, the momentum encoder, is what its masks come from; `backbone.` and `head.` repeat
tensors of other names, and `backbone_q.` is the classifier.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from samix.errors import ArtefactError, ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.frozen import MaskNet
from samix.mixing.openmixup_layout import (
    BLOCK,
    ENCODER,
    Weights,
    recognise_backbone,
    recognise_block,
    stage_channels,
)
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, samix_spec
from samix.mixing.render import Upsampling
from samix.mixing.spec import MixerSpec

Normalisation = Literal["cifar", "imagenet"]

_MAX_TOKENS = 4096  # 64 MB of attention for each image
_STATISTICS = {"cifar": (CIFAR_MEAN, CIFAR_STD), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}
_CURE = "give a whole checkpoint of a published setting"

# Ours to theirs; the first that fits counts.
_PREFIXES = {
    "encoder.backbone.": ENCODER,
    "block.query.": f"{BLOCK}query.conv.",
    "block.key.": f"{BLOCK}key.conv.",
    "block.content.0.": f"{BLOCK}value.conv.0.conv.",
    "block.content.1.": f"{BLOCK}value.conv.0.bn.",
    "block.content.3.": f"{BLOCK}value.conv.1.conv.",
    "block.content.": f"{BLOCK}value.",
}


@dataclass(frozen=True, kw_only=True)
class ImportChoices:
    """What whoever imports a checkpoint knows of its training; the rest shows in the checkpoint."""

    normalisation: Normalisation | None = None
    """Whose mean and standard deviation its images were normalised with; must be given."""
    lam_curve: float | None = None
    """lam_mul_k of its config; must be given for SAMix, AutoMix has none."""
    upsampling: Upsampling | None = None
    """Of the logits, before the sigmoid; without it the published one, bilinear for SAMix and nearest for AutoMix."""
    stage: int | None = None
    """mask_layer of its config; without it the stage whose channels fit the mixing block."""
    lam_margin: float = 0.0
    """Pairs with lam or 1 - lam up to this get the constant mask lam: 0 leaves all masks to the mixing block, 0.08 is
    what classifiers were trained with."""
    image_size: int = 0
    """Side of its training images in pixels; 0 takes 224 with an ImageNet stem, and with a CIFAR stem 32, or 64 where
    the normalisation is ImageNet's (Tiny-ImageNet)."""


def import_openmixup(state: Weights, choices: ImportChoices) -> tuple[MixerSpec, dict[str, Tensor]]:
    """Bring an AutoMix or SAMix checkpoint into our layout.

    Args:
        state: the checkpoint's `state_dict`.
        choices: what it does not hold.

    Returns:
        Settings in mode `openmixup`, and float32 weights for the `MaskNet` built from them.

    Raises:
        ArtefactError: if it is no such checkpoint, has a layout that is not supported, or is damaged.
        ConfigError: if a choice is missing, out of bounds or contradicts the checkpoint.
    """
    for prefix, part in ((BLOCK, "mixing block"), (ENCODER, "momentum encoder")):
        if not any(key.startswith(prefix) for key in state):
            found = ", ".join(sorted({f"{key.split('.')[0]}.*" for key in state})[:6]) or "nothing"
            raise ArtefactError(
                f"it holds {found} but no {part} ({prefix}*); give the whole checkpoint of an AutoMix or SAMix training"
            )
    backbone = recognise_backbone(state)
    block, num_channels = recognise_block(state)
    stage = _stage(stage_channels(state), num_channels, choices.stage)
    spec = _spec(backbone, _with_curve(block, choices.lam_curve), stage, choices)
    return spec, _weights(state, spec)


def _stage(channels: list[int], num_channels: int, wanted: int | None) -> int:
    if num_channels not in channels:
        raise ArtefactError(
            f"its mixing block takes {num_channels} channels, its encoder's stages put out {channels}; they do not "
            "belong together"
        )
    stage = channels.index(num_channels)
    if wanted not in (None, stage):
        raise ConfigError(
            f"stage must be {stage}: its mixing block takes {num_channels} channels, its encoder's stages put out "
            f"{channels}; got {wanted}, leave --stage out"
        )
    return stage


def _with_curve(block: BlockSpec, lam_curve: float | None) -> BlockSpec:
    if block.lam_encoding != "multiply":
        return block
    if lam_curve is None:
        raise ConfigError(
            "SAMix bends lambda by a curve that its checkpoint does not hold; give --lam-curve, the lam_mul_k of its "
            "config: 0.25 for CIFAR-100, -1 for ImageNet, iNaturalist, Places and Tiny-ImageNet (0.25 there for "
            "ResNeXt-50), 1 for CUB and Aircraft"
        )
    return replace(block, lam_curve=lam_curve)


def _spec(backbone: BackboneSpec, block: BlockSpec, stage: int, choices: ImportChoices) -> MixerSpec:
    if choices.normalisation is None:
        raise ConfigError(
            "a checkpoint does not hold the normalisation of its images; give --normalisation cifar for CIFAR-10 and "
            "CIFAR-100, imagenet for everything else"
        )
    mean, std = _STATISTICS[choices.normalisation]
    size = choices.image_size or _usual_size(backbone, choices.normalisation)
    spec = samix_spec(
        backbone,
        mean=mean,
        std=std,
        image_size=size,
        stage=stage,
        block=block,
        upsampling=choices.upsampling or ("bilinear" if block.content == "nonlinear" else "nearest"),
        lam_margin=choices.lam_margin,
    )
    if not spec.min_side <= size <= spec.max_side or spec.tokens(size, size) > _MAX_TOKENS:
        raise ConfigError(
            f"images of {size} x {size} are too many features; give the side it was trained on, 32 to 224"
        )
    # Early stages have more features than the usual limit, which must not refuse the images the mixer was trained on.
    return replace(spec, mode="openmixup", max_tokens=max(spec.max_tokens, spec.tokens(size, size)))


def _usual_size(backbone: BackboneSpec, normalisation: str) -> int:
    if backbone.stem == "imagenet":
        return 224
    return 32 if normalisation == "cifar" else 64


def _weights(state: Weights, spec: MixerSpec) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = MaskNet.build(spec).state_dict()
    del expected["block.gamma"]  # no tensor of theirs: it is 1 in the reference and does not learn
    names = {_their_name(key): key for key in expected}
    later = tuple(f"{ENCODER}layer{number}." for number in range(spec.stage + 2, 5))
    for name in sorted(state.keys() - names.keys()):
        if name.startswith((ENCODER, BLOCK)) and not name.startswith(later):
            raise ArtefactError(
                f"its tensor {name} has no place in {spec.backbone.name} with its mixing block; {_CURE}"
            )
    weights = {key: _fitting(state, name, expected[key]) for name, key in names.items()}
    return weights | {"block.gamma": torch.ones(())}


def _their_name(key: str) -> str:
    ours = next(prefix for prefix in _PREFIXES if key.startswith(prefix))
    return _PREFIXES[ours] + key.removeprefix(ours)


def _fitting(state: Weights, name: str, expected: Tensor) -> Tensor:
    if name not in state:
        raise ArtefactError(f"it lacks the tensor {name}; {_CURE}")
    found = state[name]
    if found.shape != expected.shape or found.is_floating_point() != expected.is_floating_point():
        raise ArtefactError(
            f"its tensor {name} is {found.dtype} {list(found.shape)} where {expected.dtype} {list(expected.shape)} "
            f"belongs; {_CURE}"
        )
    if not found.isfinite().all():
        raise ArtefactError(f"its tensor {name} is not finite: its training diverged; give an earlier checkpoint")
    return found.to(expected.dtype)
