"""The training loop: steps an optimiser over mixed batches; knows neither who mixed them nor what a loss means."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch
from samix.mixing.losses import mixed_cross_entropy
from trainer.metrics import TrainerMetrics

Objective = Callable[[nn.Module, MixedBatch], Tensor]
"""What one batch costs a model, a scalar with a gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step of this rank did."""

    loss: float
    """Of this rank's batch, before the update."""
    lr: float
    """Learning rate it was made with."""
    images: int
    """Images in this rank's batch."""
    duration_s: float
    """Time since the step before, in seconds."""
    waited_s: float
    """Share of that in which it was blocked waiting for its mixed batch, in seconds."""


def classify_mixed(model: nn.Module, mixed: MixedBatch) -> Tensor:
    """Mixed cross-entropy of a classifier."""
    assert mixed.labels_a is not None
    assert mixed.labels_b is not None
    return mixed_cross_entropy(model(mixed.images), mixed.labels_a, mixed.labels_b, mixed.lam)


def train_epoch(
    model: nn.Module,
    batches: Iterable[MixedBatch],
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    schedule: LRScheduler,
    metrics: TrainerMetrics,
) -> Iterator[Step]:
    """Train on every batch, one step each; the caller consumes the steps.

    Raises:
        ConfigError: if the loss is no longer finite.
    """
    model.train()
    last, waited_s = time.perf_counter(), metrics.waited_s
    for mixed in batches:
        loss = objective(model, mixed)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        lr = float(schedule.get_last_lr()[0])
        schedule.step()
        step = Step(
            loss=loss.item(),
            lr=lr,
            images=len(mixed.images),
            duration_s=time.perf_counter() - last,
            waited_s=metrics.waited_s - waited_s,
        )
        last, waited_s = time.perf_counter(), metrics.waited_s
        _count(step, metrics)
        yield step


def _count(step: Step, metrics: TrainerMetrics) -> None:
    if not math.isfinite(step.loss):
        raise ConfigError(f"the loss became {step.loss} at learning rate {step.lr:g}; lower --optimiser.lr")
    metrics.steps.inc()
    metrics.images.inc(step.images)
    metrics.loss.set(step.loss)
    metrics.lr.set(step.lr)
    metrics.step_duration.observe(step.duration_s)
