"""What a checkpoint of the public reference implementation tells of itself: its network, its mixing block, its stage.

It holds tensors and no settings, so everything is read from names and shapes. Lambda as an extra channel shows only in
an odd number of inputs.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from samix.errors import ArtefactError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec

Weights = Mapping[str, Tensor]

ENCODER, BLOCK = "backbone_k.", "mix_block."
"""Prefixes of the momentum encoder, which sees what is mixed, and of the mixing block."""

_STEMS: dict[int, Literal["cifar", "imagenet"]] = {3: "cifar", 7: "imagenet"}
_DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
_OTHER_NETWORKS = {
    "patch_embed.": "a vision transformer",
    "block1.": "a Wide-ResNet",
    "downsample_layers.": "a ConvNeXt",
    "stem.": "a ResNet with a deep stem",
}
_SUPPORTED = "ResNet-18/34/50/101/152 and ResNeXt-50/101"


def recognise_backbone(state: Weights) -> BackboneSpec:
    """Name the network of the momentum encoder.

    Bottlenecks are taken to stride at their 3x3 convolution, as in all published settings; it does not show.

    Raises:
        ArtefactError: if it is none of the supported ones, or incomplete.
    """
    for prefix, network in _OTHER_NETWORKS.items():
        if any(key.startswith(ENCODER + prefix) for key in state):
            raise ArtefactError(f"its encoder is {network} ({ENCODER}{prefix}*); supported are {_SUPPORTED}")
    side = _kernel(state, f"{ENCODER}conv1.weight")[2]
    kind = "bottleneck" if f"{ENCODER}layer1.0.conv3.weight" in state else "basic"
    blocks = tuple(_num_blocks(state, f"{ENCODER}layer{number}.") for number in range(1, 5))
    if side not in _STEMS or (kind, blocks) not in _DEPTHS:
        raise ArtefactError(
            f"its encoder starts with a {side} x {side} convolution and has {list(blocks)} {kind} blocks; supported "
            f"are {_SUPPORTED} with a 3 x 3 (CIFAR) or 7 x 7 (ImageNet) stem"
        )
    width, group_width = _kernel(state, f"{ENCODER}layer1.0.conv2.weight")[:2]
    groups = width // group_width
    depth = _DEPTHS[kind, blocks]
    name = f"resnet{depth}" if groups == 1 else f"resnext{depth}_{groups}x{group_width}d"
    return BackboneSpec(name=name, stem=_STEMS[side])


def recognise_block(state: Weights) -> tuple[BlockSpec, int]:
    """Tell AutoMix, with or without lambda, from SAMix.

    Returns:
        Settings whose lambda curve is still straight, and the number of channels the features have.

    Raises:
        ArtefactError: if it is another arrangement, or incomplete.
    """
    is_samix = f"{BLOCK}value.conv.0.conv.weight" in state and f"{BLOCK}key.conv.weight" in state
    is_automix = f"{BLOCK}value.weight" in state and f"{BLOCK}key.conv.weight" not in state
    if not is_samix and not is_automix:
        found = ", ".join(sorted(key for key in state if key.startswith(BLOCK))[:12])
        raise ArtefactError(
            f"its mixing block is {found}; supported are AutoMix ({BLOCK}value.weight, one query) and SAMix "
            f"({BLOCK}value.conv.*, query and key)"
        )
    width, inputs = _kernel(state, f"{BLOCK}query.conv.weight")[:2]
    value_inputs = _kernel(state, f"{BLOCK}value.conv.0.conv.weight" if is_samix else f"{BLOCK}value.weight")[1]
    if is_samix:
        reduction = _reduction(value_inputs, width)
        return BlockSpec(learnable_gamma=False, activation="elu", reduction=reduction), value_inputs
    if value_inputs != inputs:
        raise ArtefactError(
            f"its value takes {value_inputs} channels and its query {inputs} (lam_concat_v); supported is lambda "
            "beside the features of both (lam_concat) or of none"
        )
    has_lam = inputs % 2 == 1  # features have an even number of channels in every supported network
    num_channels = inputs - int(has_lam)
    spec = BlockSpec(
        lam_encoding="concat" if has_lam else "none",
        learnable_gamma=False,
        content="linear",
        attention="cross",
        reduction=_reduction(num_channels, width),
    )
    return spec, num_channels


def stage_channels(state: Weights) -> list[int]:
    """Return the number of channels each stage of the momentum encoder puts out.

    Raises:
        ArtefactError: if a stage is missing.
    """
    last = "conv3" if f"{ENCODER}layer1.0.conv3.weight" in state else "conv2"
    return [_kernel(state, f"{ENCODER}layer{number}.0.{last}.weight")[0] for number in range(1, 5)]


def _reduction(num_channels: int, width: int) -> int:
    # Within what BlockSpec takes: a width that fits no reduction is then refused by its tensor's name.
    return min(64, max(1, num_channels // width))


def _num_blocks(state: Weights, prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def _kernel(state: Weights, key: str) -> tuple[int, ...]:
    """Return the shape of a convolution: outputs, inputs of one group, height, width."""
    if key not in state:
        raise ArtefactError(f"it lacks the tensor {key}; give a whole checkpoint")
    shape = tuple(state[key].shape)
    if len(shape) != 4 or 0 in shape:
        raise ArtefactError(f"its tensor {key} is {list(shape)} and no convolution; give a whole checkpoint")
    return shape
