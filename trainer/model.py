"""What is trained: a backbone with a classifier, behind the normalisation of its images."""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import nn

from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.encoder import Channels, Normalise
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network and its normalisation."""

    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    """Which network."""
    mean: Channels = IMAGENET_MEAN
    """Mean of each channel, for images in [0, 1]."""
    std: Channels = IMAGENET_STD
    """Standard deviation of each channel, for images in [0, 1]."""


def build_classifier(config: ModelConfig, num_classes: int, *, seed: int) -> nn.Sequential:
    """Build the model with random weights: float [B, 3, H, W] in [0, 1] to logits [B, K].

    Args:
        config: which network.
        num_classes: K.
        seed: of the weights; the same on every rank. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reseed the GPUs too
        backbone = build_backbone(config.backbone, num_classes)
    return nn.Sequential(OrderedDict(normalise=Normalise(config.mean, config.std), backbone=backbone))
