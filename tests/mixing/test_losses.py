"""Objectives of the classifier, against plain formulas written out for one row at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from samix.mixing.losses import mixed_bce, mixed_cross_entropy

A = torch.tensor([0, 1, 2, 3])
B = torch.tensor([1, 3, 2, 0])  # the third pair is of one class
LAM = torch.tensor([0.0, 0.3, 0.7, 1.0])


def scores() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 3


def soft_labels(smoothing: float = 0.0) -> Tensor:
    hard = torch.zeros(4, 5).scatter_add(1, A[:, None], LAM[:, None]).scatter_add(1, B[:, None], 1 - LAM[:, None])
    return (1 - smoothing) * hard + smoothing / 5


def cross_entropy(row: list[float], label: int) -> float:
    return -math.log(math.exp(row[label]) / sum(math.exp(score) for score in row))


def binary(score: float, target: float) -> float:
    chance = 1 / (1 + math.exp(-score))
    return -(target * math.log(chance) + (1 - target) * math.log(1 - chance))


def test_mixed_cross_entropy_is_the_mix_of_two() -> None:
    """lam * CE(a) + (1 - lam) * CE(b), each row with its own lam, averaged; it equals CE against the soft label."""
    rows = [
        lam * cross_entropy(row, a) + (1 - lam) * cross_entropy(row, b)
        for row, a, b, lam in zip(scores().tolist(), A.tolist(), B.tolist(), LAM.tolist(), strict=True)
    ]

    loss = mixed_cross_entropy(scores(), A, B, LAM)

    assert loss.item() == pytest.approx(sum(rows) / 4, rel=1e-5)
    assert loss.item() == pytest.approx(F.cross_entropy(scores(), soft_labels()).item(), rel=1e-5)


@settings(deadline=None)
@given(smoothing=st.floats(0, 1))
def test_label_smoothing_spreads_a_share_over_all_classes(smoothing: float) -> None:
    """Both losses smooth alike: the target is (1 - s) * soft label + s / K."""
    cross = mixed_cross_entropy(scores(), A, B, LAM, label_smoothing=smoothing)
    sigmoid = mixed_bce(scores(), A, B, LAM, label_smoothing=smoothing)

    torch.testing.assert_close(cross, F.cross_entropy(scores(), soft_labels(smoothing)))
    torch.testing.assert_close(sigmoid, F.binary_cross_entropy_with_logits(scores(), soft_labels(smoothing)))


def test_a_class_may_be_ruled_out() -> None:
    """A logit of -inf in a class of neither label leaves the unsmoothed loss finite."""
    logits = scores()
    logits[:, 4] = -math.inf

    assert mixed_cross_entropy(logits, A, B, LAM).isfinite()


def test_mixed_bce_compares_every_class_with_its_share() -> None:
    """Of every image and class, the binary cross-entropy against the soft label; averaged, or summed over classes."""
    targets = soft_labels().tolist()
    classes = [
        [binary(*pair) for pair in zip(*rows, strict=True)] for rows in zip(scores().tolist(), targets, strict=True)
    ]

    mean = mixed_bce(scores(), A, B, LAM)
    total = mixed_bce(scores(), A, B, LAM, over_classes="sum")

    assert mean.item() == pytest.approx(sum(map(sum, classes)) / 20, rel=1e-5)
    assert total.item() == pytest.approx(sum(map(sum, classes)) / 4, rel=1e-5)


@pytest.mark.parametrize("loss", [mixed_cross_entropy, mixed_bce])
def test_half_precision_scores_are_compared_in_float32(loss) -> None:
    """Large scores in half precision give the float32 loss of the same scores, also under autocast."""
    logits = (scores() * 1e3).bfloat16()

    with torch.autocast("cpu", torch.bfloat16):
        half = loss(logits, A, B, LAM)

    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(logits.float(), A, B, LAM), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [mixed_cross_entropy, mixed_bce])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_those_of_the_formula(loss, smoothing: float) -> None:
    """In float64 the gradients agree with finite differences."""
    logits = scores().double().requires_grad_()

    assert torch.autograd.gradcheck(lambda z: loss(z, A, B, LAM.double(), label_smoothing=smoothing), logits)
