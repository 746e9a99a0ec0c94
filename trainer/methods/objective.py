"""What the classifier minimises: its loss on mixed images, and on clean ones beside them where wanted."""

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, as_unit_float
from samix.mixing.classifier import Classifier
from samix.mixing.losses import mixed_cross_entropy


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """The classifier's loss."""

    clean_weight: float = 0.0
    """Weight of the cross-entropy on clean images beside the mixed ones. The public reference of SAMix uses 1; 0 saves
    a forward and a backward per step."""

    def __post_init__(self) -> None:
        if not 0 <= self.clean_weight < math.inf:
            raise ConfigError(f"clean_weight must be a number of at least 0, got {self.clean_weight}")


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
    loss = mixed_cross_entropy(classifier(mixed.images), mixed.labels_a, mixed.labels_b, mixed.lam)
    if not config.clean_weight:
        return loss
    images = as_unit_float(clean.to(mixed.images.device, non_blocking=True))
    return loss + config.clean_weight * F.cross_entropy(classifier.clean_logits(images).float(), mixed.labels_a)
