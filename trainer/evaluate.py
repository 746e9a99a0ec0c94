"""Evaluation over all ranks: every rank counts its own samples once, and one sum at the end adds the counts.

Counts stay on the device until then: a figure fetched for every batch would make the device wait for Python.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from samix.mixing.batch import as_unit_float
from services.shards.dataset import Batch
from trainer.calibration import NUM_BINS, Bin, bin_numbers, calibration_error, make_bins
from trainer.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What one evaluation found."""

    top1: float
    """Share of samples whose class was ranked first."""
    top5: float
    """Share of samples whose class was among the first five (or all, if there are fewer)."""
    samples: int
    """Samples counted, over all ranks."""
    cross_entropy: float
    """Mean over the samples, in nats."""
    class_samples: tuple[int, ...]
    """Samples of each class."""
    class_right: tuple[int, ...]
    """Those of them whose class was ranked first."""
    bins: tuple[Bin, ...]
    """Samples by confidence."""
    seconds: float
    """From the first batch asked for on this rank until the counts of all ranks were added."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, a share in [0, 1]."""
        return calibration_error(self.bins)

    @property
    def images_per_s(self) -> float:
        """Images that all ranks together evaluated in a second."""
        return self.samples / self.seconds

    def class_top1(self, number: int) -> float | None:
        """Top-1 among the samples of one class; None if it has none."""
        samples = self.class_samples[number]
        return self.class_right[number] / samples if samples else None

    def row(self) -> dict[str, float]:
        """Round what the log shows of it."""
        figures = ("top1", "top5", "cross_entropy", "calibration_error")
        return {name: round(getattr(self, name), 5) for name in figures}


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    world: World,
    head: Callable[[Tensor], Tensor],
    *,
    num_classes: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Evaluation:
    """Evaluate one head of a model on this rank's share of the samples; every rank must call it.

    Args:
        model: switched to evaluation and back; not wrapped for DDP, whose buffers would be synchronised per batch
            while ranks may have unequal numbers of batches.
        batches: this rank's samples, each once; a rank may have none.
        world: whose counts are added.
        head: images in [0, 1] to logits [B, K]; may be the model itself.
        num_classes: K.
        clock: in seconds.
    """
    started = clock()
    counts = _Counts(num_classes, world.device)
    model.eval()
    for batch in batches:
        images = batch.images.to(world.device, non_blocking=True)
        labels = batch.labels.to(world.device, non_blocking=True)
        counts.add(head(as_unit_float(images)), labels)
    model.train()
    top5, loss, classes, bins = counts.total(world)
    samples, right = classes.sum(0).tolist()
    return Evaluation(
        top1=right / samples,
        top5=top5 / samples,
        samples=int(samples),
        cross_entropy=loss / samples,
        class_samples=tuple(map(int, classes[:, 0].tolist())),
        class_right=tuple(map(int, classes[:, 1].tolist())),
        bins=make_bins(bins),
        seconds=clock() - started,
    )


class _Counts:
    """Sums over samples; float64 on the device, which counts exactly up to 2^53."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._overall = torch.zeros(2, dtype=torch.float64, device=device)
        self._classes = torch.zeros(num_classes, 2, dtype=torch.float64, device=device)
        self._bins = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [B, K] of any float type, labels int64 [B]."""
        logarithms = logits.float().log_softmax(1)
        first = logarithms.topk(min(5, self._num_classes), dim=1)
        hits = first.indices == labels.unsqueeze(1)
        loss = -logarithms.gather(1, labels.unsqueeze(1)).sum(dtype=torch.float64)
        confidence, right = first.values[:, 0].double().exp(), hits[:, 0].double()
        one = torch.ones_like(right)
        self._overall += torch.stack([hits.sum().double(), loss])
        self._classes.index_add_(0, labels, torch.stack([one, right], 1))
        self._bins.index_add_(0, bin_numbers(confidence), torch.stack([one, confidence, right], 1))

    def total(self, world: World) -> tuple[float, float, Tensor, Tensor]:
        """Add those of all ranks.

        Returns:
            Hits among the first five; loss; of each class (samples, right), float64 [K, 2]; of each bin (samples,
            confidence, right), float64 [15, 3].
        """
        parts = (self._overall, self._classes, self._bins)
        summed = world.total(torch.cat([part.flatten() for part in parts]))
        overall, classes, bins = summed.split([part.numel() for part in parts])
        top5, loss = overall.tolist()
        return top5, loss, classes.view_as(self._classes), bins.view_as(self._bins)
