"""What the classifier minimises: its loss on mixed images, and on clean ones beside them where wanted."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, as_unit_float
from samix.mixing.classifier import Classifier
from samix.mixing.decoupled import DecoupledConfig, decoupled_bce, decoupled_cross_entropy
from samix.mixing.losses import OverClasses, mixed_bce, mixed_cross_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The classifier's loss."""

    loss: Literal["ce", "bce", "dm_ce", "dm_bce"] = "ce"
    """Mixed cross-entropy, mixed binary cross-entropy (ResNet strikes back), or either with Decoupled Mixup."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes; for `ce` and `bce`."""
    over_classes: OverClasses = "mean"
    """How the binary losses of one image become one number; for `bce` and `dm_bce`."""
    decoupled: DecoupledConfig = field(default_factory=DecoupledConfig)
    """Settings of `dm_ce`; `dm_bce` takes threshold and exponent."""
    clean_weight: float = 0.0
    """Weight of the loss on clean images beside that on mixed ones. The public reference of SAMix uses 1; 0 saves a
    forward and a backward per step."""

    def __post_init__(self) -> None:
        if not 0 <= self.clean_weight < math.inf:
            raise ConfigError(f"clean_weight must be a number of at least 0, got {self.clean_weight}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.label_smoothing and self.loss not in ("ce", "bce"):
            raise ConfigError(f"label_smoothing is for the losses ce and bce, got {self.loss}; set it to 0")


def classify(classifier: Classifier, mixed: MixedBatch, clean: Tensor, config: ObjectiveConfig) -> Tensor:
    """Return the loss, a scalar with a gradient.

    Args:
        classifier: images in [0, 1] to logits.
        mixed: with labels.
        clean: the images before mixing, uint8 or float in [0, 1], on any device.
        config: which loss.
    """
    assert mixed.labels_a is not None
    assert mixed.labels_b is not None
    loss = loss_of_logits(classifier(mixed.images), mixed.labels_a, mixed.labels_b, mixed.lam, config)
    if not config.clean_weight:
        return loss
    images = as_unit_float(clean.to(mixed.images.device, non_blocking=True))
    unmixed = torch.ones_like(mixed.lam)
    on_clean = loss_of_logits(classifier.clean_logits(images), mixed.labels_a, mixed.labels_a, unmixed, config)
    return loss + config.clean_weight * on_clean


def loss_of_logits(logits: Tensor, labels_a: Tensor, labels_b: Tensor, lam: Tensor, config: ObjectiveConfig) -> Tensor:
    """Compare logits [B, K] with lam * a + (1 - lam) * b by the loss of the config; a scalar."""
    pair = (logits, labels_a, labels_b, lam)
    match config.loss:
        case "ce":
            return mixed_cross_entropy(*pair, label_smoothing=config.label_smoothing)
        case "bce":
            return mixed_bce(*pair, label_smoothing=config.label_smoothing, over_classes=config.over_classes)
        case "dm_ce":
            return decoupled_cross_entropy(*pair, config.decoupled)
        case "dm_bce":
            rescaling = {"threshold": config.decoupled.threshold, "exponent": config.decoupled.exponent}
            return decoupled_bce(*pair, **rescaling, over_classes=config.over_classes)
