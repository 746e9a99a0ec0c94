"""Accuracy over all ranks: every rank counts its own samples once, and one sum at the end adds the counts."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samix.mixing.batch import as_unit_float
from services.shards.dataset import Batch
from trainer.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Result of one evaluation."""

    top1: float
    """Share of samples whose class was ranked first."""
    top5: float
    """Share of samples whose class was among the first five (or all, if there are fewer)."""
    samples: int
    """Samples counted, over all ranks."""


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], world: World, head: Callable[[Tensor], Tensor] | None = None
) -> Accuracy:
    """Evaluate a model on this rank's share of the samples; every rank must call it.

    Args:
        model: switched to evaluation and back; not wrapped for DDP, whose buffers would be synchronised per batch
            while ranks may have unequal numbers of batches.
        batches: this rank's samples, each once.
        world: whose counts are added.
        head: images in [0, 1] to logits [B, K]; None takes the model itself.
    """
    head = head or model
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=world.device)
    for batch in batches:
        labels = batch.labels.to(world.device, non_blocking=True)
        logits = head(as_unit_float(batch.images.to(world.device, non_blocking=True)))
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)
        counts += torch.stack([hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=world.device)])
    model.train()
    top1, top5, samples = world.total(counts).tolist()
    return Accuracy(top1=top1 / samples, top5=top5 / samples, samples=samples)
