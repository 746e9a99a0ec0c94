"""A moving average of the classifier's weights (Polyak and Juditsky, 1992), which then is what is evaluated."""

from typing import Any

from torch import nn


def averaged_copy(model: nn.Module, decay: float) -> Any:
    """Make timm's average of a model, a copy with `update(model)`; its weights are in `module`.

    Args:
        model: what is trained.
        decay: share of the average that stays at each step; early on less of it does, else the random start would
            stay in it for thousands of steps.
    """
    from timm.utils.model_ema import ModelEmaV3  # seconds to import, and few runs average

    return ModelEmaV3(model, decay=decay, use_warmup=True, foreach=True)
