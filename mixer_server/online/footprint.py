"""How much memory a session needs, worked out on shapes alone before anything is allocated."""

from typing import Any

import torch
from torch import Tensor, nn

from samix.cotraining.settings import SessionSettings
from samix.errors import BadBatch, ConfigError
from samix.mixing.block import MixingBlock
from samix.mixing.classifier import Classifier
from samix.mixing.encoder import feature_stride, num_feature_channels
from samix.mixing.online import floating_state

_FLOAT = 4
_BYTES_OF_BLOCK = 5 * _FLOAT
"""Of each parameter of the block: itself, its gradient, two of an optimiser, and what a checkpoint copies."""
_BYTES_OF_COPY = 5 * _FLOAT
"""Of each number of the momentum copy: itself, weights that wait, those that come, and two while they are read."""


def credits_of(settings: SessionSettings) -> int:
    """Say how many batches of one rank may be here and unanswered."""
    return settings.max_staleness + 2


def check_and_measure(settings: SessionSettings) -> int:
    """Say how many bytes a session needs: networks, waiting batches, and what a pass holds for its backward.

    Raises:
        BadBatch: if there is no such network, or it does not take such images.
    """
    side = settings.mixer.image_size
    settings.mixer.check_size(side, side)
    try:
        with torch.device("meta"), torch.no_grad():
            classifier = settings.build_classifier()
            block = MixingBlock(settings.mixer.block, num_feature_channels(classifier.backbone, settings.mixer.stage))
            _check_stride(settings, classifier)
    except ConfigError as error:
        raise BadBatch(f"the session's settings cannot be used: {error}", field="settings") from error
    copies = sum(value.numel() for value in floating_state(classifier).values())
    learned = sum(parameter.numel() for parameter in block.parameters())
    image = 3 * side * side
    unlearned = settings.max_staleness + 1
    channels = num_feature_channels(classifier.backbone, settings.mixer.stage)
    features = _FLOAT * channels * settings.mixer.tokens(side, side)
    waiting = 2 * credits_of(settings) * image + unlearned * (image + features)
    networks = _BYTES_OF_COPY * copies + _BYTES_OF_BLOCK * learned
    return networks + settings.world_size * settings.batch_size * waiting + _pass_bytes(settings, classifier)


def _pass_bytes(settings: SessionSettings, classifier: Classifier) -> int:
    """Add up what the layers put out: the backward needs it. One image is looked at, and taken for all."""
    total = 0

    def count(_module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal total
        total += output.numel() if isinstance(output, Tensor) else 0

    leaves = [module for module in classifier.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(count) for module in leaves]
    side = settings.mixer.image_size
    try:
        with torch.no_grad():
            classifier.eval()(torch.empty(1, 3, side, side, device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    tokens = settings.mixer.tokens(side, side)
    attention = 3 * tokens * tokens
    images = 4 * 3 * side * side
    return _FLOAT * settings.batch_size * (2 * total + attention + images)


def _check_stride(settings: SessionSettings, classifier: Classifier) -> None:
    """Refuse a stride that is not the network's: limits on tokens would be of another grid."""
    spec = settings.mixer
    stride = feature_stride(classifier.backbone, spec.backbone, spec.stage)
    if spec.stride != stride:
        raise ConfigError(f"stage {spec.stage} of {spec.backbone.name} has stride {stride}, got {spec.stride}")
