"""SGD with a warm-up and a cosine, per step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from samix.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """How weights are updated."""

    lr: float = 0.1
    """Learning rate at its highest, for the global batch as configured."""
    min_lr: float = 0.0
    """Learning rate that the cosine falls to."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """On every parameter, as in the published CIFAR and ImageNet runs."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises in a straight line."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr < math.inf:
            raise ConfigError(f"optimiser.min_lr must lie between 0 and lr, got {self.min_lr} and {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optimiser.momentum must be at least 0 and below 1, got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"optimiser.weight_decay must be at least 0, got {self.weight_decay}")
        if self.warmup_steps < 0:
            raise ConfigError(f"optimiser.warmup_steps must be at least 0, got {self.warmup_steps}")


def build_sgd(config: OptimiserConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """Make the optimiser."""
    return torch.optim.SGD(
        parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=False
    )


def build_schedule(config: OptimiserConfig, optimiser: torch.optim.Optimizer, total_steps: int) -> LambdaLR:
    """Make the schedule; to be stepped once per training step."""
    floor = config.min_lr / config.lr if config.lr else 0.0
    return LambdaLR(optimiser, lambda step: cosine_share(step, total_steps, config.warmup_steps, floor))


def cosine_share(step: int, total_steps: int, warmup_steps: int, floor: float) -> float:
    """Return the share of the highest learning rate at a step: a line up, then half a cosine down to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
