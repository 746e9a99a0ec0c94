"""The encoder of a mixer: a backbone up to one stage, with the normalisation it was trained with."""

import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec, build_backbone

Channels = tuple[float, float, float]


class Normalise(nn.Module):
    """Subtract the mean and divide by the standard deviation of each channel, [0, 1] in."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Channels, std: Channels) -> None:
        super().__init__()
        # Not persistent: mean and std are part of an artefact's settings, not of its weights.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalise float images [B, 3, H, W]."""
        return (images - self.mean) / self.std


def feature_index(backbone: nn.Module, stage: int) -> int:
    """Translate a zero-based stage into the index of timm's `forward_intermediates`.

    timm counts a convolutional stem as feature 0, the papers count stages only (l = 3 is stage 2).

    Raises:
        ConfigError: if the backbone has no such stage.
    """
    info = backbone.feature_info
    modules = [entry["module"] for entry in info]  # type: ignore[union-attr]
    stages = [index for index, name in enumerate(modules) if name != "act1"]
    if not 0 <= stage < len(stages):
        raise ConfigError(f"stage must be 0..{len(stages) - 1} for this backbone, got {stage}")
    return stages[stage]


def num_feature_channels(backbone: nn.Module, stage: int) -> int:
    """Return the number of channels C that `stage` puts out."""
    return backbone.feature_info[feature_index(backbone, stage)]["num_chs"]  # type: ignore[index]


def feature_stride(backbone: nn.Module, spec: BackboneSpec, stage: int) -> int:
    """Return how many pixels of a side one feature of `stage` stands for."""
    stride: int = backbone.feature_info[feature_index(backbone, stage)]["reduction"]  # type: ignore
    return stride // 4 if spec.stem == "cifar" else stride  # timm speaks of the stem that was replaced


def stage_features(backbone: nn.Module, images: Tensor, index: int) -> Tensor:
    """Run a backbone on normalised images up to one feature, [B, C, h, w]; later layers do not run."""
    (features,) = backbone.forward_intermediates(  # type: ignore[operator]
        images, indices=[index], stop_early=True, intermediates_only=True
    )
    return features


class Encoder(nn.Module):
    """The layers of a backbone up to a stage; the later ones are neither run nor stored."""

    def __init__(self, backbone: nn.Module, index: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.index = index

    @classmethod
    def build(cls, spec: BackboneSpec, stage: int) -> "Encoder":
        """Build with random weights.

        Raises:
            ConfigError: if there is no such backbone or stage.
        """
        backbone = build_backbone(spec, num_classes=0)
        index = feature_index(backbone, stage)
        backbone.prune_intermediate_layers([index], prune_head=True)  # type: ignore[operator]
        return cls(backbone, index)

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images [B, 3, H, W] to features [B, C, h, w]."""
        return stage_features(self.backbone, images, self.index)
