"""Image networks by name: what a mixer's encoder is cut from, and what the trainer trains.

timm builds them. Its ResNets carry torchvision's parameter names, so checkpoints of either fit.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from samix.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSpec:
    """Which network."""

    name: str = "resnet18"
    """timm's name of the network."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """`cifar` replaces a ResNet's 7x7 stride-2 convolution and max-pooling by a 3x3 convolution, for 32 and 64 px."""
    layers: tuple[int, ...] = ()
    """Residual blocks of each stage; empty keeps the published ones."""
    channels: tuple[int, ...] = ()
    """Width of each stage; empty keeps the published ones."""

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


def build_backbone(spec: BackboneSpec, num_classes: int) -> nn.Module:
    """Build the network with random weights, drawn from torch's global generator as timm does.

    Args:
        spec: which network.
        num_classes: size of the classifier; 0 leaves pooled features.

    Raises:
        ConfigError: if timm does not know the name, or the stem does not fit it.
    """
    import timm  # three seconds to import, and the client never needs it

    if not timm.is_model(spec.name):
        near = ", ".join(timm.list_models(f"{spec.name[:6]}*")[:5]) or "see timm.list_models()"
        raise ConfigError(f"timm knows no backbone {spec.name!r}; near it: {near}")
    shape: dict[str, Any] = {
        key: value for key, value in (("layers", spec.layers), ("channels", spec.channels)) if value
    }
    try:
        network = timm.create_model(spec.name, num_classes=num_classes, **shape)
    except TypeError as error:
        raise ConfigError(f"backbone {spec.name!r} takes no layers and channels ({error}); leave them empty") from error
    if spec.stem == "cifar":
        _use_cifar_stem(network, spec.name)
    # A third less time per training step on a CPU (ResNet-10, 32 px, oneDNN), and what tensor cores want.
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network


def _use_cifar_stem(network: nn.Module, name: str) -> None:
    first = getattr(network, "conv1", None)
    if not isinstance(first, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise ConfigError(f"stem 'cifar' is for ResNets, backbone {name!r} has no single first convolution")
    network.conv1 = nn.Conv2d(3, first.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
