"""Optimisers and their learning rates, from a config: a warm-up, then half a cosine, per step."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from samix.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """How weights are updated."""

    kind: Literal["sgd", "adamw", "lamb"] = "sgd"
    """Which optimiser."""
    lr: float = 0.1
    """Learning rate at its highest, for the global batch as configured."""
    min_lr: float = 0.0
    """Learning rate that the cosine falls to."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-4
    """On every parameter, as in the published CIFAR and ImageNet runs, unless --...no-decay-all."""
    decay_all: bool = True
    """Decay norms, biases and the embeddings a network excepts, too; recipes with AdamW and LAMB do not."""
    clip_norm: float = 0.0
    """Longest the gradient may be, as one vector over all parameters; longer ones are shortened to it. 0 never does."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises in a straight line."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_lr <= self.lr < math.inf:
            raise ConfigError(f"optimiser.min_lr must lie between 0 and lr, got {self.min_lr} and {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optimiser.momentum must be at least 0 and below 1, got {self.momentum}")
        for name in ("weight_decay", "clip_norm", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"optimiser.{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunLength:
    """How long a run is, in optimiser steps."""

    steps_per_epoch: int
    """Of one epoch."""
    epochs: int
    """Times the training set is seen."""

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.epochs


def build_optimiser(config: OptimiserConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of the parameters that learn."""
    groups = list(_groups(config, module))
    match config.kind:
        case "sgd":
            return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
        case "adamw":
            return torch.optim.AdamW(groups, lr=config.lr)
        case "lamb":
            from timm.optim.lamb import Lamb  # seconds to import, and only this recipe needs it

            return Lamb(groups, lr=config.lr)


def _groups(config: OptimiserConfig, module: nn.Module) -> Iterator[dict[str, Any]]:
    learned = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    excepted = set() if config.decay_all else {*_excepted(module)}
    for decay, names in ((config.weight_decay, learned.keys() - excepted), (0.0, learned.keys() & excepted)):
        if names:
            yield {"params": [learned[name] for name in learned if name in names], "weight_decay": decay}


def _excepted(module: nn.Module) -> Iterator[str]:
    """Name what is not to decay: vectors, which are norms and biases, and what a network of timm says by itself."""
    yield from (name for name, parameter in module.named_parameters() if parameter.ndim <= 1)
    for prefix, child in module.named_modules():
        names = child.no_weight_decay() if hasattr(child, "no_weight_decay") else ()  # type: ignore[operator]
        yield from (f"{prefix}.{name}" if prefix else name for name in names)


def rate_at(config: OptimiserConfig, length: RunLength, step: int) -> float:
    """Return the learning rate of a step, counted from 0: a line up, then half a cosine down to `min_lr`."""
    floor = config.min_lr / config.lr if config.lr else 0.0
    warmup_steps = round(config.warmup_epochs * length.steps_per_epoch)
    return config.lr * cosine_share(step, length.total_steps, warmup_steps, floor)


def cosine_share(step: int, total_steps: int, warmup_steps: int, floor: float) -> float:
    """Return the share of the highest learning rate at a step: a line up, then half a cosine down to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
