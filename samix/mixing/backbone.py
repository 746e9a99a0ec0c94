"""Image networks by name: what a mixer's encoder is cut from, and what the trainer trains.

Most names are timm's, whose ResNets carry torchvision's parameter names, so checkpoints of either fit. Nothing is ever
downloaded, whatever the name: weights come from training, or from a file by `samix.mixing.pretrained`.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from samix.errors import ConfigError
from samix.mixing.timm_backbone import build_timm
from samix.mixing.torchvision_backbone import PREFIX, TorchvisionBackbone
from samix.mixing.wide_resnet import WideResNet, parse_wide_resnet


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """Which network."""

    name: str = "resnet18"
    """timm's name of the network, torchvision's behind `torchvision/`, or `wide_resnet28_8`: depth 28, width 8."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """`cifar` replaces a ResNet's 7x7 stride-2 convolution and max-pooling by a 3x3 convolution, for 32 and 64 px;
    `imagenet` keeps the stem a network has."""
    layers: tuple[int, ...] = ()
    """Residual blocks of each stage of timm's ResNets; empty keeps the published ones."""
    channels: tuple[int, ...] = ()
    """Width of each stage of timm's ResNets; empty keeps the published ones."""

    def __post_init__(self) -> None:
        # Bounded, because an artefact's settings decide what is built.
        if not all(1 <= number <= 100 for number in self.layers):
            raise ConfigError(f"layers must be numbers of blocks in 1..100, got {list(self.layers)[:16]}")
        if not all(1 <= width <= 8192 for width in self.channels):
            raise ConfigError(f"channels must be widths in 1..8192, got {list(self.channels)[:16]}")
        if {len(self.layers), len(self.channels)} - {0, 4}:
            raise ConfigError(
                f"layers and channels each hold 4 numbers or none, got {len(self.layers)} and {len(self.channels)}"
            )


def build_backbone(spec: BackboneSpec, num_classes: int, *, drop_path: float = 0.0) -> nn.Module:
    """Build the network with random weights, drawn from torch's global generator as timm does.

    Args:
        spec: which network.
        num_classes: size of the classifier; 0 leaves pooled features.
        drop_path: see `build_timm`; for networks of timm.

    Raises:
        ConfigError: if there is no such network, or the stem, layers, channels or drop_path do not fit it.
    """
    backbone = _build(spec, num_classes, drop_path)
    if spec.stem == "cifar":
        _use_cifar_stem(backbone.network if isinstance(backbone, TorchvisionBackbone) else backbone, spec.name)
    # A third less time per training step on a CPU (ResNet-10, 32 px, oneDNN), and what tensor cores want.
    for parameter in backbone.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return backbone


def _build(spec: BackboneSpec, num_classes: int, drop_path: float) -> nn.Module:
    wide = parse_wide_resnet(spec.name)
    if wide is None and not spec.name.startswith(PREFIX):
        return build_timm(spec.name, num_classes, layers=spec.layers, channels=spec.channels, drop_path=drop_path)
    if drop_path:
        raise ConfigError(f"backbone {spec.name[:60]!r} takes no drop_path, got {drop_path}; leave it at 0")
    if spec.layers or spec.channels:
        raise ConfigError(f"backbone {spec.name[:60]!r} takes no layers and channels; leave them empty")
    if wide is None:
        return TorchvisionBackbone.build(spec.name.removeprefix(PREFIX), num_classes)
    depth, width = wide
    return WideResNet(depth, width, num_classes)


def _use_cifar_stem(network: nn.Module, name: str) -> None:
    first = getattr(network, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise ConfigError(
            f"stem 'cifar' is for ResNets that start with one convolution and max-pooling, backbone {name!r} does not; "
            "leave it at 'imagenet', which keeps the stem as it is"
        )
    network.conv1 = nn.Conv2d(3, first.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
