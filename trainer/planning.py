"""Batches for a method that mixes by itself: clean images, and the plans it is to mix them by."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samix.mixing.online_config import OnlineConfig, StepPlans, draw_step_plans
from samix.mixing.plan import generator_for
from services.shards.dataset import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A clean batch and what one co-training step draws for it, on the device of this rank."""

    images: Tensor
    """uint8 [B, 3, H, W]."""
    labels: Tensor
    """int64 [B]."""
    plans: StepPlans
    """Drawn from (run seed, epoch, number of the batch, rank)."""
    step: int
    """Number of the step in the run, from 0."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True, slots=True)
class Planning:
    """Draws the plans of a rank; stands where others mix."""

    config: OnlineConfig
    """What is drawn."""
    run_seed: int
    """Of the run."""
    rank: int
    """Of this process."""
    steps_per_epoch: int
    """Steps of an epoch on every rank."""
    micro_batches: int = 1
    """Batches of one step."""
    device: torch.device
    """Where batches go."""

    def epoch(self, epoch: int, batches: Iterable[Batch], *, first_batch: int = 0) -> Iterator[Planned]:
        """Plan every batch of an epoch; see `BatchMixing`."""
        for number, batch in enumerate(batches, start=first_batch):
            generator = generator_for(self.run_seed, epoch, number, self.rank)
            yield Planned(
                images=batch.images.to(self.device, non_blocking=True),
                labels=batch.labels.to(self.device, non_blocking=True),
                plans=draw_step_plans(len(batch), self.config, generator).to(self.device),
                step=epoch * self.steps_per_epoch + number // self.micro_batches,
            )
