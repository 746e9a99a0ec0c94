"""What is trained: a backbone with a classifier, behind the normalisation of its images."""

from dataclasses import dataclass, field

from samix.mixing.backbone import BackboneSpec
from samix.mixing.classifier import Classifier
from samix.mixing.encoder import Channels
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


def build_classifier(config: ModelConfig, num_classes: int, *, seed: int, clean_head: bool = False) -> Classifier:
    """Build the model with random weights, see `Classifier.build`."""
    return Classifier.build(
        config.backbone, num_classes, mean=config.mean, std=config.std, seed=seed, clean_head=clean_head
    )
