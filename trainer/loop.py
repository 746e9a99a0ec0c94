"""The training loop: steps optimisers over batches; knows neither who mixed them nor what a loss means."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from samix.errors import ConfigError
from samix.mixing.update import Update
from trainer.methods.method import Item, Losses, Method
from trainer.metrics import TrainerMetrics

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one optimiser step of this rank did."""

    loss: float
    """The classifier's, of this rank's images, before the update."""
    lr: float
    """Learning rate it was made with."""
    images: int
    """Images of this rank."""
    duration_s: float
    """Time since the step before, in seconds."""
    waited_s: float
    """Share of that in which it was blocked waiting for its mixed batch, in seconds."""
    figures: Mapping[str, float]
    """What else the method measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepping:
    """How a step is made of batches."""

    precision: Precision = "fp32"
    """bf16 and fp16 run the networks under autocast; weights, losses and masks stay float32."""
    micro_batches: int = 1
    """Batches whose gradients are averaged into one step."""


_PLAIN = Stepping()


def train_epoch(
    network: nn.Module,
    method: Method,
    batches: Iterable[Item],
    update: Update,
    metrics: TrainerMetrics,
    *,
    seeds: Callable[[int], int],
    stepping: Stepping = _PLAIN,
    first_step: int = 0,
) -> Iterator[Step]:
    """Train on every batch; the caller consumes the steps.

    Args:
        network: the method, or what DDP made of it.
        method: what turns a batch into losses.
        batches: what this method takes, `micro_batches` for each step.
        update: its optimisers.
        metrics: where steps are counted.
        seeds: by number of the step in its epoch, seeds torch's global generator, from which dropout alone draws; so a
            step draws the same whether or not the run was resumed before it.
        stepping: how a step is made of batches.
        first_step: number of the first step.

    Raises:
        ConfigError: if the loss is no longer finite; the step that made it so was done.
    """
    method.train()
    last, waited_s = time.perf_counter(), metrics.waited_s
    for number, items in enumerate(_grouped(batches, stepping.micro_batches), start=first_step):
        torch.manual_seed(seeds(number))
        lr = update.lr
        losses = _gather_gradients(network, items, update, stepping)
        update.step()
        method.updated(items[-1])
        loss, figures = _read(losses, lr)
        step = Step(
            loss=loss,
            lr=lr,
            images=sum(map(len, items)),
            duration_s=time.perf_counter() - last,
            waited_s=metrics.waited_s - waited_s,
            figures=figures,
        )
        last, waited_s = time.perf_counter(), metrics.waited_s
        _count(step, metrics)
        yield step


def _grouped(batches: Iterable[Item], size: int) -> Iterator[Sequence[Item]]:
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def _gather_gradients(network: nn.Module, items: Sequence[Any], update: Update, stepping: Stepping) -> Sequence[Losses]:
    device = next(network.parameters()).device.type
    found: list[Losses] = []
    for index, item in enumerate(items, start=1):
        # Ranks add up their gradients once, with those of the last micro-batch.
        is_last = index == len(items)
        with network.no_sync() if isinstance(network, DistributedDataParallel) and not is_last else nullcontext():
            with torch.autocast(device, _DTYPES[stepping.precision], enabled=stepping.precision != "fp32"):
                losses: Losses = network(item)
            update.backward(losses.total / len(items) if len(items) > 1 else losses.total)
        found.append(losses)
    return found


def _read(losses: Sequence[Losses], lr: float) -> tuple[float, dict[str, float]]:
    """Bring the averages over micro-batches to the host, in one transfer: the device is waited for once a step."""
    names = ("loss", "total loss", *losses[0].figures)
    rows = [torch.stack([one.classifier, one.total.detach(), *one.figures.values()]) for one in losses]
    values = dict(zip(names, map(fmean, zip(*(row.tolist() for row in rows), strict=True)), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigError(f"the {name} became {value} at learning rate {lr:g}; lower --optimiser.lr")
    del values["total loss"]
    return values.pop("loss"), values


def _count(step: Step, metrics: TrainerMetrics) -> None:
    metrics.steps.inc()
    metrics.images.inc(step.images)
    metrics.loss.set(step.loss)
    metrics.lr.set(step.lr)
    metrics.step_duration.observe(step.duration_s)
