"""The encoder of a mixer: a backbone up to one stage, with the normalisation it was trained with."""

from typing import Any

import torch
from torch import Tensor, nn

from samix.errors import BadBatch, ConfigError
from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.chain import ChainBackbone
from samix.mixing.timm_backbone import fixed_size

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
    """Translate a zero-based stage into the index of the backbone's features.

    Stages are the features at most eight times finer than the coarsest, as the four of a ResNet are; what is finer
    belongs to the stem. The papers count stages from one: their l = 3 is stage 2. Of a vision transformer, whose grid
    stays the same, each block is a stage.

    Raises:
        ConfigError: if the backbone has no such stage.
    """
    strides = [entry["reduction"] for entry in _feature_info(backbone)]
    stages = [index for index, stride in enumerate(strides) if stride * 8 >= strides[-1]]
    if not 0 <= stage < len(stages):
        raise ConfigError(f"stage must be 0..{len(stages) - 1} for this backbone, got {stage}")
    return stages[stage]


def num_feature_channels(backbone: nn.Module, stage: int) -> int:
    """Return the number of channels C that `stage` puts out."""
    return _feature_info(backbone)[feature_index(backbone, stage)]["num_chs"]


def feature_stride(backbone: nn.Module, spec: BackboneSpec, stage: int) -> int:
    """Return how many pixels of a side one feature of `stage` stands for."""
    stride: int = _feature_info(backbone)[feature_index(backbone, stage)]["reduction"]
    return stride // 4 if spec.stem == "cifar" else stride  # it speaks of the stem that was replaced


def stage_features(backbone: nn.Module, images: Tensor, index: int) -> Tensor:
    """Run a backbone on normalised images up to one feature; later layers do not run.

    Args:
        backbone: from `build_backbone`, whole or cut.
        images: [B, 3, H, W].
        index: from `feature_index`.

    Returns:
        [B, C, h, w]; of a vision transformer the grid of its patches, without class tokens.

    Raises:
        BadBatch: if the backbone takes images of another size only.
    """
    size = fixed_size(backbone)
    if size is not None and images.shape[2:] != size:
        raise BadBatch(
            f"images are {images.shape[2]} x {images.shape[3]}, this backbone takes {size[0]} x {size[1]} only; "
            "resize them or use another"
        )
    if isinstance(backbone, ChainBackbone):
        return backbone.features(images, index)
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
        if isinstance(backbone, ChainBackbone):
            backbone.cut(index)
        else:
            backbone.prune_intermediate_layers([index], prune_norm=True, prune_head=True)  # type: ignore[operator]
        return cls(backbone, index)

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images [B, 3, H, W] to features [B, C, h, w]."""
        return stage_features(self.backbone, images, self.index)


def _feature_info(backbone: nn.Module) -> list[dict[str, Any]]:
    if not isinstance(backbone, ChainBackbone) and not hasattr(backbone, "forward_intermediates"):
        raise ConfigError(f"{type(backbone).__name__} cannot be cut into stages; take another backbone")
    return backbone.feature_info  # type: ignore[return-value]
