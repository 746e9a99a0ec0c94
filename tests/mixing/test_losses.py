"""Losses, against plain formulas written out for one row at a time."""

import math

import pytest
import torch
from torch import Tensor

from samix.mixing.losses import eta_balanced_loss, mask_loss, mixed_cross_entropy

A = torch.tensor([0, 1, 2, 3])
B = torch.tensor([1, 3, 2, 0])  # the third pair is of one class
LAM = torch.tensor([0.0, 0.3, 0.7, 1.0])


def scores() -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 3


def cross_entropy(row: list[float], label: int, among: list[int]) -> float:
    return -math.log(math.exp(row[label]) / sum(math.exp(row[index]) for index in among))


def mixed_rows(logits: Tensor) -> list[float]:
    return [
        lam * cross_entropy(row, a, list(range(5))) + (1 - lam) * cross_entropy(row, b, list(range(5)))
        for row, a, b, lam in zip(logits.tolist(), A.tolist(), B.tolist(), LAM.tolist(), strict=True)
    ]


def pair_rows(logits: Tensor) -> list[float]:
    return [
        0.0 if a == b else lam * cross_entropy(row, a, [a, b]) + (1 - lam) * cross_entropy(row, b, [a, b])
        for row, a, b, lam in zip(logits.tolist(), A.tolist(), B.tolist(), LAM.tolist(), strict=True)
    ]


def test_mixed_cross_entropy_is_the_mix_of_two() -> None:
    """lam * CE(a) + (1 - lam) * CE(b), each row with its own lam, averaged; it equals CE against the soft label."""
    logits = scores()
    soft = torch.zeros(4, 5).scatter_add(1, A[:, None], LAM[:, None]).scatter_add(1, B[:, None], 1 - LAM[:, None])

    loss = mixed_cross_entropy(logits, A, B, LAM)

    assert loss.item() == pytest.approx(sum(mixed_rows(logits)) / 4, rel=1e-5)
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, soft).item(), rel=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.1, 0.5, 1.0])
def test_the_eta_balanced_loss_is_local_plus_eta_global(eta: float) -> None:
    """The two-way softmax over the pair's classes, plus eta times the mixed cross-entropy."""
    logits = scores()

    loss = eta_balanced_loss(logits, A, B, LAM, eta)

    expected = sum(local + eta * whole for local, whole in zip(pair_rows(logits), mixed_rows(logits), strict=True)) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_pairs_of_one_class_count_by_cross_entropy_alone() -> None:
    """Between equal classes there is no local term: eta = 0 leaves nothing, and no gradient is NaN."""
    logits = scores().requires_grad_()

    local = eta_balanced_loss(logits, A, A, LAM, eta=0.0)
    eta_balanced_loss(logits, A, A, LAM, eta=0.5).backward()

    assert local.item() == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert eta_balanced_loss(logits, A, A, LAM, eta=0.5).item() == pytest.approx(
        0.5 * torch.nn.functional.cross_entropy(logits, A).item(), rel=1e-5
    )


def test_the_eta_balanced_loss_does_not_depend_on_the_order() -> None:
    """Rows may be reordered, and the images of a pair exchanged with their lam."""
    logits, order = scores(), torch.tensor([2, 0, 3, 1])

    loss = eta_balanced_loss(logits, A, B, LAM, 0.3)

    torch.testing.assert_close(eta_balanced_loss(logits[order], A[order], B[order], LAM[order], 0.3), loss)
    torch.testing.assert_close(eta_balanced_loss(logits, B, A, 1 - LAM, 0.3), loss)


def test_half_precision_scores_are_compared_in_float32() -> None:
    """Large scores in half precision give finite float32 losses."""
    logits = (scores() * 1e3).bfloat16()

    losses = [mixed_cross_entropy(logits, A, B, LAM), eta_balanced_loss(logits, A, B, LAM, 0.5)]

    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses)


def test_the_mask_loss_is_taken_for_each_image() -> None:
    """max(|mean - lam| - margin, 0) - var of every mask alone, averaged."""
    masks = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    lam, expected = torch.tensor([0.1, 0.5, 0.9]), []
    for mask, share in zip(masks.flatten(1).tolist(), lam.tolist(), strict=True):
        mean = sum(mask) / len(mask)
        variance = sum((value - mean) ** 2 for value in mask) / len(mask)
        expected.append(max(abs(mean - share) - 0.1, 0) - variance)

    loss = mask_loss(masks, lam, margin=0.1)

    assert loss.item() == pytest.approx(sum(expected) / 3, rel=1e-5)


def test_wrong_masks_do_not_make_up_for_each_other() -> None:
    """Two masks whose means average to lam are still penalised."""
    masks = torch.stack([torch.zeros(1, 2, 2), torch.ones(1, 2, 2)])

    loss = mask_loss(masks, torch.tensor([0.5, 0.5]), margin=0.1)

    assert loss.item() == pytest.approx(0.4)


def test_within_the_margin_only_variance_counts() -> None:
    """A mean near lam costs nothing, and a mask of zeros and ones is rewarded."""
    masks = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)

    assert mask_loss(masks, torch.tensor([0.55]), margin=0.1).item() == pytest.approx(-0.25)
