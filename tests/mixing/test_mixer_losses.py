"""Objectives of the mixer, against plain formulas written out for one row at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from samix.errors import ConfigError
from samix.mixing.mixer_losses import batch_mask_loss, eta_balanced_loss, mask_loss

A = torch.tensor([0, 1, 2, 3])
B = torch.tensor([1, 3, 2, 0])  # the third pair is of one class
LAM = torch.tensor([0.0, 0.3, 0.7, 1.0])


def scores() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 3


def some_masks() -> Tensor:
    return torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))


def cross_entropy(row: list[float], label: int, among: list[int]) -> float:
    return -math.log(math.exp(row[label]) / sum(math.exp(row[index]) for index in among))


def balanced(row: list[float], a: int, b: int, lam: float, eta: float) -> float:
    def mixed(among: list[int]) -> float:
        return lam * cross_entropy(row, a, among) + (1 - lam) * cross_entropy(row, b, among)

    return (0.0 if a == b else mixed([a, b])) + eta * mixed(list(range(len(row))))


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.5, 1.0])
def test_the_eta_balanced_loss_is_local_plus_eta_global(eta: float) -> None:
    """The two-way softmax over the pair's classes, plus eta times the mixed cross-entropy."""
    rows = zip(scores().tolist(), A.tolist(), B.tolist(), LAM.tolist(), strict=True)

    loss = eta_balanced_loss(scores(), A, B, LAM, eta)

    assert loss.item() == pytest.approx(sum(balanced(*row, eta) for row in rows) / 4, rel=1e-5)


def test_eta_matters() -> None:
    """The local term is there for hard labels too: the loss is not the mixed cross-entropy, whatever eta."""
    losses = {round(eta_balanced_loss(scores(), A, B, LAM, eta).item(), 4) for eta in (0.0, 0.5, 1.0)}

    assert len(losses) == 3


def test_pairs_of_one_class_count_by_cross_entropy_alone() -> None:
    """Between equal classes there is no local term: eta = 0 leaves nothing, and no gradient is NaN."""
    logits = scores().requires_grad_()

    local = eta_balanced_loss(logits, A, A, LAM, eta=0.0)
    half = eta_balanced_loss(logits, A, A, LAM, eta=0.5)
    half.backward()

    assert local.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    torch.testing.assert_close(half, 0.5 * F.cross_entropy(logits, A))


def test_the_eta_balanced_loss_does_not_depend_on_the_order() -> None:
    """Rows may be reordered, and the images of a pair exchanged with their lam."""
    order = torch.tensor([2, 0, 3, 1])

    loss = eta_balanced_loss(scores(), A, B, LAM, 0.3)

    torch.testing.assert_close(eta_balanced_loss(scores()[order], A[order], B[order], LAM[order], 0.3), loss)
    torch.testing.assert_close(eta_balanced_loss(scores(), B, A, 1 - LAM, 0.3), loss)


def test_half_precision_scores_are_compared_in_float32() -> None:
    """Large scores in half precision give the float32 loss of the same scores."""
    logits = (scores() * 1e3).bfloat16()

    loss = eta_balanced_loss(logits, A, B, LAM, 0.5)

    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, eta_balanced_loss(logits.float(), A, B, LAM, 0.5), rtol=0, atol=0)


def test_gradients_are_those_of_the_formula() -> None:
    """In float64 the gradients agree with finite differences, of scores as of masks."""
    masks, lam = some_masks().double().requires_grad_(), LAM[:3].double()

    assert torch.autograd.gradcheck(
        lambda z: eta_balanced_loss(z, A, B, LAM.double(), 0.3), scores().double().requires_grad_()
    )
    assert torch.autograd.gradcheck(lambda m: mask_loss(m, lam, 0.1), masks)
    assert torch.autograd.gradcheck(lambda m: batch_mask_loss(m, lam, 0.1, "L1+Variance"), masks)


@pytest.mark.parametrize("variance", [True, False])
def test_the_mask_loss_is_taken_for_each_image(variance: bool) -> None:
    """max(|mean - lam| - margin, 0) of every mask alone, less its variance where that is rewarded, averaged."""
    lam, expected = torch.tensor([0.1, 0.5, 0.9]), []
    for mask, share in zip(some_masks().flatten(1).tolist(), lam.tolist(), strict=True):
        mean = sum(mask) / len(mask)
        spread = sum((value - mean) ** 2 for value in mask) / len(mask)
        expected.append(max(abs(mean - share) - 0.1, 0) - variance * spread)

    loss = mask_loss(some_masks(), lam, margin=0.1, variance=variance)

    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_wrong_masks_do_not_make_up_for_each_other() -> None:
    """Two masks whose means average to lam are still penalised, which the public reference does not do (B6)."""
    masks, lam = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)]), torch.tensor([0.5, 0.5])

    assert mask_loss(masks, lam, margin=0.1).item() == pytest.approx(0.4)
    assert batch_mask_loss(masks, lam, 0.1, "L1").item() == 0


def test_within_the_margin_only_variance_counts() -> None:
    """A mean near lam costs nothing, and a mask of zeros and ones is rewarded."""
    masks = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)

    assert mask_loss(masks, torch.tensor([0.55]), margin=0.1).item() == pytest.approx(-0.25)


@settings(deadline=None)
@given(
    partners=st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=3),
    lam=st.floats(0, 1, width=32),
)
def test_the_reference_judges_the_partners_masks_of_a_whole_batch(partners: list[list[float]], lam: float) -> None:
    """All four kinds follow the public reference, which is written in the partner's masks 1 - mask, m their mean."""
    pixels = [pixel for mask in partners for pixel in mask]
    m = sum(pixels) / len(pixels)
    twice_variance = 2 * sum((pixel - m) ** 2 for pixel in pixels) / len(pixels)
    expected = {
        "L1": max(abs(1 - m - lam) - 0.1, 0),
        "L1+Variance": max(abs(1 - m - lam) - 0.1, 0) - twice_variance,
        "L2+Variance": max((1 - m - lam) ** 2 - 0.1**2, 0) - twice_variance,
        "Sparsity": max(sum(abs(pixel * (pixel - 1)) for pixel in pixels) / len(pixels) - 0.1, 0),
    }
    masks = 1 - torch.tensor(partners).view(-1, 1, 2, 2)

    losses = {kind: batch_mask_loss(masks, torch.full([len(masks)], lam), 0.1, kind).item() for kind in expected}  # type: ignore[arg-type]

    assert losses == pytest.approx(expected, abs=1e-6)


def test_the_references_mask_loss_may_be_negative() -> None:
    """Masks of zeros and ones whose mean is lam earn twice their variance of 1/4 (B7)."""
    masks = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)

    assert batch_mask_loss(masks, torch.tensor([0.5]), 0.1, "L1+Variance").item() == pytest.approx(-0.5)


def test_an_unknown_kind_is_refused() -> None:
    """The message names the kinds there are."""
    with pytest.raises(ConfigError, match="L1, L1\\+Variance, L2\\+Variance or Sparsity, got 'l1'"):
        batch_mask_loss(some_masks(), LAM[:3], 0.1, "l1")  # type: ignore[arg-type]
