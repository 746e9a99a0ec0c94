"""Optimisers with a warm-up and a cosine, per step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from samix.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserConfig:
    """How weights are updated."""

    kind: Literal["sgd", "adamw"] = "sgd"
    """Which optimiser."""
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


class Update:
    """Optimisers that step together, each with its schedule. The first is the classifier's."""

    def __init__(self, optimisers: Sequence[torch.optim.Optimizer], schedules: Sequence[LambdaLR]) -> None:
        self._optimisers = optimisers
        self._schedules = schedules

    @classmethod
    def of(cls, groups: Iterable[tuple[OptimiserConfig, Iterable[nn.Parameter]]], total_steps: int) -> "Update":
        """Make an optimiser for each group of parameters."""
        pairs = [(config, build_optimiser(config, parameters)) for config, parameters in groups]
        schedules = [build_schedule(config, optimiser, total_steps) for config, optimiser in pairs]
        return cls([optimiser for _, optimiser in pairs], schedules)

    @property
    def lr(self) -> float:
        """Learning rate of the classifier at the next step."""
        return float(self._schedules[0].get_last_lr()[0])

    def apply(self, loss: Tensor) -> None:
        """Do one backward and one step of everything."""
        for optimiser in self._optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for optimiser, schedule in zip(self._optimisers, self._schedules, strict=True):
            optimiser.step()
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes up again."""
        return {
            "kinds": self._kinds(),
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "schedules": [schedule.state_dict() for schedule in self._schedules],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of an earlier run.

        Raises:
            ValueError: if it has other optimisers or parameters.
        """
        if state["kinds"] != self._kinds():  # torch would take it, and fail at the first step
            raise ValueError(f"it was trained with {' and '.join(state['kinds'])}, not {' and '.join(self._kinds())}")
        for mine, theirs in zip(self._optimisers, state["optimisers"], strict=True):
            mine.load_state_dict(theirs)
        for mine, theirs in zip(self._schedules, state["schedules"], strict=True):
            mine.load_state_dict(theirs)

    def _kinds(self) -> list[str]:
        return [type(optimiser).__name__ for optimiser in self._optimisers]


def build_optimiser(config: OptimiserConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser of the parameters that learn."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if config.kind == "adamw":
        return torch.optim.AdamW(learned, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(learned, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


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
