"""The training loop: steps optimisers over batches; knows neither who mixed them nor what a loss means."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from samix.errors import ConfigError
from trainer.methods.method import Item, Losses, Method
from trainer.metrics import TrainerMetrics
from trainer.optimise import Update

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step of this rank did."""

    loss: float
    """The classifier's, of this rank's batch, before the update."""
    lr: float
    """Learning rate it was made with."""
    images: int
    """Images in this rank's batch."""
    duration_s: float
    """Time since the step before, in seconds."""
    waited_s: float
    """Share of that in which it was blocked waiting for its mixed batch, in seconds."""
    figures: Mapping[str, float]
    """What else the method measured."""


def train_epoch(
    network: nn.Module,
    method: Method,
    batches: Iterable[Item],
    update: Update,
    metrics: TrainerMetrics,
    *,
    precision: Precision = "fp32",
) -> Iterator[Step]:
    """Train on every batch, one step each; the caller consumes the steps.

    Args:
        network: the method, or what DDP made of it.
        method: what turns a batch into losses.
        batches: what this method takes.
        update: its optimisers.
        metrics: where steps are counted.
        precision: `bf16` runs the networks under autocast; weights, losses and masks stay float32.

    Raises:
        ConfigError: if the loss is no longer finite.
    """
    method.train()
    device = next(method.parameters()).device.type
    last, waited_s = time.perf_counter(), metrics.waited_s
    for item in batches:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            losses: Losses = network(item)
        lr = update.lr
        _check_finite(losses, lr)
        update.apply(losses.total)
        method.updated(item)
        step = Step(
            loss=losses.classifier.item(),
            lr=lr,
            images=len(item),
            duration_s=time.perf_counter() - last,
            waited_s=metrics.waited_s - waited_s,
            figures={name: value.item() for name, value in losses.figures.items()},
        )
        last, waited_s = time.perf_counter(), metrics.waited_s
        _count(step, metrics)
        yield step


def _check_finite(losses: Losses, lr: float) -> None:
    for name, value in {"loss": losses.total, **losses.figures}.items():
        if not math.isfinite(value.item()):
            raise ConfigError(f"the {name} became {value.item()} at learning rate {lr:g}; lower --optimiser.lr")


def _count(step: Step, metrics: TrainerMetrics) -> None:
    metrics.steps.inc()
    metrics.images.inc(step.images)
    metrics.loss.set(step.loss)
    metrics.lr.set(step.lr)
    metrics.step_duration.observe(step.duration_s)
