"""Checkpoints laid out as the public reference implementation saves them, with random weights and lively masks."""

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["samix", "automix", "automix concat"]
Shapes = dict[str, tuple[int, ...]]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def checkpoint(
    kind: Kind,
    depth: int = 18,
    *,
    stem: int = 3,
    stage: int = 2,
    groups: int = 1,
    group_width: int = 64,
    reduction: int = 2,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Make a state dict; layers after the stage and the branches no mask depends on are constant.

    Args:
        kind: of mixer.
        depth: of the ResNet.
        stem: side of the first kernel, 3 for CIFAR or 7 for ImageNet.
        stage: zero-based, where the mixing block reads.
        groups: more than 1 for ResNeXt.
        group_width: channels of a group in the first stage.
        reduction: of query and key.
        seed: of all weights.
    """
    shapes = resnet_shapes(depth, stem, groups, group_width)
    channels = 64 * 2**stage * (4 if depth >= 50 else 1)
    generator = torch.Generator().manual_seed(seed)
    later = tuple(f"layer{number}." for number in range(stage + 2, 5))
    state = {
        f"backbone_k.{key}": constant(key, shape) if key.startswith(later) else _random(key, shape, 2.0, generator)
        for key, shape in shapes.items()
    }
    for key, shape in _block_shapes(kind, channels, reduction).items():
        gain = 60.0 if key.startswith(("query", "key")) else 10.0
        state[f"mix_block.{key}"] = _random(key, shape, gain, generator)
    for branch in ("backbone.", "backbone_q."):
        state |= {branch + key: constant(key, shape) for key, shape in shapes.items()}
    for head in ("head", "head_mix_q", "head_mix_k", "head_one_q", "head_one_k"):
        state |= {f"{head}.fc.weight": torch.zeros(100, _num_outputs(depth)), f"{head}.fc.bias": torch.zeros(100)}
    return state


def resnet_shapes(depth: int, stem: int, groups: int = 1, group_width: int = 64) -> Shapes:
    """Names and shapes of a ResNet's tensors, as torchvision has them."""
    shapes: Shapes = {"conv1.weight": (64, 3, stem, stem), **_norm_shapes("bn1", 64)}
    inputs = 64
    for layer, count in enumerate(BLOCKS[depth], start=1):
        planes = 64 * 2 ** (layer - 1)
        outputs = planes * 4 if depth >= 50 else planes
        inner = groups * group_width * planes // 64
        for number in range(count):
            if depth >= 50:
                kernels = [(inner, inputs, 1, 1), (inner, inner // groups, 3, 3), (outputs, inner, 1, 1)]
            else:
                kernels = [(planes, inputs, 3, 3), (planes, planes, 3, 3)]
            shapes |= dict(_block_of_kernels(f"layer{layer}.{number}", kernels))
            if inputs != outputs:
                name = f"layer{layer}.{number}.downsample"
                shapes |= {f"{name}.0.weight": (outputs, inputs, 1, 1), **_norm_shapes(f"{name}.1", outputs)}
            inputs = outputs
    return shapes


def constant(key: str, shape: tuple[int, ...]) -> Tensor:
    """Make a tensor of ones that takes no memory."""
    return torch.ones((), dtype=torch.int64 if key.endswith("tracked") else torch.float32).expand(shape)


def only(state: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if key.startswith(prefixes)}


def _num_outputs(depth: int) -> int:
    return 2048 if depth >= 50 else 512


def _block_of_kernels(name: str, kernels: list[tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for number, kernel in enumerate(kernels, start=1):
        yield f"{name}.conv{number}.weight", kernel
        yield from _norm_shapes(f"{name}.bn{number}", kernel[0]).items()


def _norm_shapes(name: str, channels: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{part}": (channels,) for part in parts}, f"{name}.num_batches_tracked": ()}


def _block_shapes(kind: Kind, channels: int, reduction: int) -> Shapes:
    width = channels // reduction
    if kind == "samix":
        return {
            "value.conv.0.conv.weight": (channels // 2, channels, 1, 1),
            **_norm_shapes("value.conv.0.bn", channels // 2),
            "value.conv.1.conv.weight": (1, channels // 2, 1, 1),
            **{f"{name}.conv.weight": (width, 2 * channels, 1, 1) for name in ("key", "query")},
            **{f"{name}.conv.bias": (width,) for name in ("key", "query")},
        }
    inputs = channels + (kind == "automix concat")
    return {
        "value.weight": (1, inputs, 1, 1),
        "value.bias": (1,),
        "query.conv.weight": (width, inputs, 1, 1),
        "query.conv.bias": (width,),
    }


def _random(key: str, shape: tuple[int, ...], gain: float, generator: torch.Generator) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if len(shape) == 4:
        return torch.randn(shape, generator=generator) * (gain / (shape[1] * shape[2] * shape[3])) ** 0.5
    if key.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if key.endswith(("bias", "running_mean")):
        return 0.2 * torch.randn(shape, generator=generator)
    return 0.3 + 0.4 * torch.rand(shape, generator=generator)
