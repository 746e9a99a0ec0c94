"""Whether a classifier is right as often as it says: confidence in bins (Guo et al. 2017, arXiv:1706.04599)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

NUM_BINS = 15
"""Of equal width, as in the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Samples whose confidence, the probability of the class ranked first, lies in one range."""

    samples: int
    """How many there are."""
    confidence: float
    """Their mean confidence; 0 where there are none."""
    accuracy: float
    """Share of them that were right; 0 where there are none."""


def bin_numbers(confidence: Tensor) -> Tensor:
    """Find the bin of each confidence, int64 [B] in 0..14; bin m is (m/15, (m+1)/15], as in the paper.

    What is no number goes to bin 0, and makes its mean none either.
    """
    return ((confidence * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)


def make_bins(sums: Tensor) -> tuple[Bin, ...]:
    """Make bins of the sums of (samples, confidence, right answers) in each, float64 [15, 3]."""
    return tuple(
        Bin(samples=int(samples), confidence=confidence / max(samples, 1), accuracy=right / max(samples, 1))
        for samples, confidence, right in sums.tolist()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Average |accuracy - confidence| of the bins, each weighted by its share of the samples (the paper's ECE)."""
    total = sum(each.samples for each in bins)
    return sum(each.samples * abs(each.accuracy - each.confidence) for each in bins) / total
