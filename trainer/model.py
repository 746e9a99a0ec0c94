"""What is trained: a backbone with a classifier, behind the normalisation of its images."""

from dataclasses import dataclass, field

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.classifier import Classifier
from samix.mixing.encoder import Channels
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD
from samix.mixing.pretrained import load_backbone_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The network and its normalisation."""

    backbone: BackboneSpec = field(default_factory=BackboneSpec)
    """Which network."""
    mean: Channels = IMAGENET_MEAN
    """Mean of each channel, for images in [0, 1]."""
    std: Channels = IMAGENET_STD
    """Standard deviation of each channel, for images in [0, 1]."""
    drop_path: float = 0.0
    """Share of images whose deepest residual block is skipped in training, less at shallower ones; DeiT-S has 0.1."""
    weights: str = ""
    """Start from the backbone in this file (.safetensors or .pth, timm's or torchvision's names); empty starts at
    random. A head for another number of classes is left out."""

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"model.drop_path must be at least 0 and below 1, got {self.drop_path}")


def build_classifier(config: ModelConfig, num_classes: int, *, seed: int, clean_head: bool = False) -> Classifier:
    """Build the model with random weights, see `Classifier.build`, and put the weights of `config.weights` into it.

    Raises:
        ConfigError: if there is no such backbone, or the weights cannot be read or do not fit.
    """
    classifier = Classifier.build(
        config.backbone,
        num_classes,
        mean=config.mean,
        std=config.std,
        seed=seed,
        clean_head=clean_head,
        drop_path=config.drop_path,
    )
    if config.weights:
        load_backbone_weights(classifier.backbone, config.weights)
    return classifier
