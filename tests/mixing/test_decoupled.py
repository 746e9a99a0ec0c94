"""Decoupled Mixup, against the formula written out for one row at a time."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from samix.errors import BadBatch, ConfigError
from samix.mixing.decoupled import (
    PUBLISHED,
    DecoupledConfig,
    asymmetric_decoupled,
    decoupled_bce,
    decoupled_cross_entropy,
    trusted_pairs,
)
from samix.mixing.losses import mixed_bce, mixed_cross_entropy

CLASSES = 5
A = torch.tensor([0, 4, 2, 3, 1])
B = torch.tensor([1, 3, 2, 0, 0])  # the third pair is of one class; some have the higher class first
LAM = torch.tensor([0.2, 0.3, 0.7, 0.9, 0.5])
CONFIGS = st.builds(
    DecoupledConfig,
    eta=st.floats(0, 2),
    sides=st.sampled_from(["both", "less", "more"]),
    threshold=st.floats(0.1, 1),
    exponent=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
ROWS = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1), st.floats(0, 1, width=16)),
    min_size=1,
    max_size=6,
)
"""Labels a and b of a pair, and its lam."""


def scores(rows: int = 5) -> Tensor:
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(0)) * 3


def tensors(rows: list[tuple[int, int, float]]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels_a, labels_b, lam = zip(*rows, strict=True)
    return scores(len(rows)), torch.tensor(labels_a), torch.tensor(labels_b), torch.tensor(lam)


def cross_entropy(row: list[float], label: int, without: int | None = None) -> float:
    total = sum(math.exp(score) for index, score in enumerate(row) if index != without)
    return -math.log(math.exp(row[label]) / total)


def rescaled(share: float, config: DecoupledConfig) -> float:
    return 1.0 if share >= config.threshold else (share / config.threshold) ** config.exponent


def decoupled_row(row: list[float], a: int, b: int, lam: float, config: DecoupledConfig) -> float:
    loss = lam * cross_entropy(row, a) + (1 - lam) * cross_entropy(row, b)
    if a == b or lam in (0, 1):
        return loss
    for label, other, share in ((a, b, lam), (b, a, 1 - lam)):
        ahead = (share > 0.5) - (share < 0.5)
        kept = {"both": 1.0, "more": (1 + ahead) / 2, "less": (1 - ahead) / 2}[config.sides]
        loss += config.eta * kept * rescaled(share, config) * cross_entropy(row, label, without=other)
    return loss


@settings(deadline=None)
@given(rows=ROWS, config=CONFIGS)
def test_dm_ce_adds_a_softmax_without_the_competitor(
    rows: list[tuple[int, int, float]], config: DecoupledConfig
) -> None:
    """Mixed CE + eta (h(lam) D_a + h(1 - lam) D_b) for each row alone, averaged; plain CE where nothing is mixed."""
    logits, labels_a, labels_b, lam = tensors(rows)
    expected = [decoupled_row(z, *row, config) for z, row in zip(logits.tolist(), rows, strict=True)]

    loss = decoupled_cross_entropy(logits, labels_a, labels_b, lam, config)

    assert loss.item() == pytest.approx(sum(expected) / len(rows), rel=1e-4, abs=1e-5)


@settings(deadline=None)
@given(rows=ROWS, config=CONFIGS, data=st.data())
def test_dm_ce_does_not_depend_on_the_order(
    rows: list[tuple[int, int, float]], config: DecoupledConfig, data: st.DataObject
) -> None:
    """Rows may be reordered, and the images of a pair exchanged with their lam."""
    logits, labels_a, labels_b, lam = tensors(rows)
    order = torch.tensor(data.draw(st.permutations(range(len(rows)))))

    loss = decoupled_cross_entropy(logits, labels_a, labels_b, lam, config)
    reordered = decoupled_cross_entropy(logits[order], labels_a[order], labels_b[order], lam[order], config)
    exchanged = decoupled_cross_entropy(logits, labels_b, labels_a, 1 - lam, config)

    torch.testing.assert_close(reordered, loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exchanged, loss, rtol=1e-4, atol=1e-5)


def test_one_sided_terms_follow_each_row_and_not_the_first() -> None:
    """Where the class with the smaller index leads in one row and the larger in the next, all orders agree (B12)."""
    logits, labels_a, labels_b = scores(2), torch.tensor([0, 3]), torch.tensor([2, 1])
    config, lam = DecoupledConfig(eta=1.0, sides="less", exponent=0.0), torch.tensor([0.3, 0.3])
    smaller = [cross_entropy(row, a, without=b) for row, a, b in zip(logits.tolist(), [0, 3], [2, 1], strict=True)]

    added = [
        decoupled_cross_entropy(logits[order], labels_a[order], labels_b[order], lam, config)
        - mixed_cross_entropy(logits, labels_a, labels_b, lam)
        for order in ([0, 1], [1, 0])
    ]

    assert [term.item() for term in added] == pytest.approx([sum(smaller) / 2] * 2, rel=1e-5)


@pytest.mark.parametrize("sides", ["both", "less", "more"])
def test_lam_one_half_is_the_middle_of_its_neighbours(sides) -> None:
    """At 0.5 no term is skipped (B13): the loss is the mean of those just below and just above."""
    config = DecoupledConfig(eta=1.0, sides=sides)
    logits, labels_a, labels_b = scores(4), torch.tensor([0, 4, 2, 3]), torch.tensor([1, 3, 0, 0])

    below, half, above = (
        decoupled_cross_entropy(logits, labels_a, labels_b, torch.full([4], lam), config).item()
        for lam in (0.4999, 0.5, 0.5001)
    )

    plain = mixed_cross_entropy(logits, labels_a, labels_b, torch.full([4], 0.5)).item()
    assert half == pytest.approx((below + above) / 2, rel=1e-4)
    assert half > plain + 0.1
    assert sides != "both" or below == pytest.approx(above, rel=1e-2)


@settings(deadline=None)
@given(config=CONFIGS, lam=st.floats(0, 1, width=32))
def test_pairs_of_one_class_are_plain(config: DecoupledConfig, lam: float) -> None:
    """Equal labels give plain cross-entropy for DM(CE) and plain BCE for DM(BCE), whatever the settings."""
    shares = torch.full([5], lam)

    cross = decoupled_cross_entropy(scores(), A, A, shares, config)
    sigmoid = decoupled_bce(scores(), A, A, shares, threshold=config.threshold, exponent=config.exponent)

    torch.testing.assert_close(cross, F.cross_entropy(scores(), A))
    torch.testing.assert_close(sigmoid, F.binary_cross_entropy_with_logits(scores(), F.one_hot(A, CLASSES).float()))


@settings(deadline=None)
@given(config=CONFIGS, lam=st.sampled_from([0.0, 1e-20, 1.0]))
def test_images_that_are_not_mixed_are_plain(config: DecoupledConfig, lam: float) -> None:
    """With lam 0 or 1 the other class is not in the picture, and neither loss asks for it."""
    shares, shown = torch.full([5], lam), (A if lam == 1 else B)

    cross = decoupled_cross_entropy(scores(), A, B, shares, config)
    sigmoid = decoupled_bce(scores(), A, B, shares, threshold=config.threshold, exponent=config.exponent)

    torch.testing.assert_close(cross, F.cross_entropy(scores(), shown))
    torch.testing.assert_close(sigmoid, F.binary_cross_entropy_with_logits(scores(), F.one_hot(shown, CLASSES).float()))


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_two_classes_and_large_scores_stay_finite(scale: float) -> None:
    """With two classes nothing is left to compete with: the term is 0, and gradients are finite."""
    logits = (scores()[:, :2] * scale).requires_grad_()
    labels, lam = torch.tensor([0, 1, 0, 1, 0]), LAM

    loss = decoupled_cross_entropy(logits, labels, 1 - labels, lam, DecoupledConfig(eta=1.0))
    loss.backward()

    torch.testing.assert_close(loss, mixed_cross_entropy(logits, labels, 1 - labels, lam))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_precision_scores_are_compared_in_float32() -> None:
    """Scores of 1e4 in half precision give the float32 loss of the same scores, and finite gradients."""
    logits = (scores() * 1e4).bfloat16().requires_grad_()

    for loss in (
        lambda z: decoupled_cross_entropy(z, A, B, LAM, DecoupledConfig()),
        lambda z: decoupled_bce(z, A, B, LAM, threshold=0.5, exponent=0.5),
    ):
        half = loss(logits)
        half.backward()

        assert half.dtype == torch.float32
        torch.testing.assert_close(half, loss(logits.float()), rtol=0, atol=0)
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("sides", ["both", "less", "more"])
def test_gradients_are_those_of_the_formula(sides) -> None:
    """In float64 the gradients agree with finite differences."""
    logits, lam = scores().double().requires_grad_(), LAM.double()
    config = DecoupledConfig(eta=0.5, sides=sides, threshold=0.8, exponent=0.5)

    assert torch.autograd.gradcheck(lambda z: decoupled_cross_entropy(z, A, B, lam, config), logits)
    assert torch.autograd.gradcheck(lambda z: decoupled_bce(z, A, B, lam, threshold=0.8, exponent=0.5), logits)


def test_the_term_leaves_the_competitor_alone() -> None:
    """The decoupled term of a has no gradient on the logit of b, so that confidence in both can grow."""
    logits, labels, lam = scores(2).requires_grad_(), torch.tensor([0, 4]), torch.tensor([0.3, 0.3])
    others = torch.tensor([2, 1])

    loss = decoupled_cross_entropy(logits, labels, others, lam, DecoupledConfig(eta=1.0, sides="less"))
    (loss - mixed_cross_entropy(logits, labels, others, lam)).backward()

    assert logits.grad is not None
    assert logits.grad.gather(1, others[:, None]).abs().max() < 1e-7
    assert (logits.grad.gather(1, labels[:, None]) < -1e-3).all()


@pytest.mark.parametrize("over_classes", ["mean", "sum"])
def test_dm_bce_of_unscaled_shares_is_mixed_bce(over_classes) -> None:
    """With threshold 1 and exponent 1, h(u) = u."""
    loss = decoupled_bce(scores(), A, B, LAM, threshold=1.0, exponent=1.0, over_classes=over_classes)

    torch.testing.assert_close(loss, mixed_bce(scores(), A, B, LAM, over_classes=over_classes))


def test_dm_bce_raises_the_targets() -> None:
    """The target of a class is (u / t)^xi below the threshold and 1 from there on."""
    logits, lam = torch.zeros(1, 3), torch.tensor([0.2])
    targets = torch.tensor([[math.sqrt(0.2 / 0.8), 0.0, 1.0]])

    losses = [
        decoupled_bce(logits + shift, torch.tensor([0]), torch.tensor([2]), lam, threshold=0.8, exponent=0.5)
        for shift in (-1, 2)
    ]

    expected = [F.binary_cross_entropy_with_logits(logits + shift, targets) for shift in (-1, 2)]
    torch.testing.assert_close(losses, expected)


def test_only_the_labelled_class_is_decoupled() -> None:
    """The asymmetric strategy is DM(CE) with the term of the labelled class alone, whose share is the smaller."""
    lam, trusted = torch.tensor([0.2, 0.3, 0.4, 0.1, 0.45]), torch.ones(5, dtype=torch.bool)
    config = DecoupledConfig(eta=0.7, exponent=0.5)

    loss = asymmetric_decoupled(scores(), A, B, lam, trusted, config)

    less = DecoupledConfig(eta=0.7, exponent=0.5, sides="less")
    torch.testing.assert_close(loss, decoupled_cross_entropy(scores(), A, B, lam, less))


def test_pseudo_labels_that_are_not_trusted_count_nothing() -> None:
    """Their rows have no gradient, and the others weigh as much as they would in a trusted batch."""
    logits, lam = scores().requires_grad_(), torch.full([5], 0.4)
    trusted = torch.tensor([True, False, True, False, False])

    loss = asymmetric_decoupled(logits, A, B, lam, trusted, DecoupledConfig())
    loss.backward()

    alone = asymmetric_decoupled(
        logits[trusted], A[trusted], B[trusted], lam[trusted], trusted[trusted], DecoupledConfig()
    )
    torch.testing.assert_close(loss, alone * 2 / 5)
    assert logits.grad is not None
    assert logits.grad.abs().sum(dim=1).gt(0).tolist() == trusted.tolist()


@pytest.mark.parametrize("lam", [0.51, math.nan])
def test_a_labelled_share_above_one_half_is_refused(lam: float) -> None:
    """The strategy means the smaller share; the message has the value and the cure."""
    trusted = torch.ones(5, dtype=torch.bool)

    with pytest.raises(BadBatch, match=r"at most 0\.5, got (0\.5|nan).*min\(lam, 1 - lam\)"):
        asymmetric_decoupled(scores(), A, B, torch.full([5], lam), trusted, DecoupledConfig())


@settings(deadline=None)
@given(confidence=st.floats(0, 1, width=32), lam=st.floats(0, 0.5, width=32), data=st.data())
def test_trust_grows_with_the_share_that_is_seen(confidence: float, lam: float, data: st.DataObject) -> None:
    """A pseudo-label needs confidence min(cutoff, max(mix_cutoff, 1 - lam))."""
    cutoff = data.draw(st.floats(0.5, 1, width=16))
    mix_cutoff = data.draw(st.floats(0, cutoff, width=16))

    trusted = trusted_pairs(torch.tensor([confidence]), torch.tensor([lam]), cutoff=cutoff, mix_cutoff=mix_cutoff)

    needed = min(cutoff, max(mix_cutoff, (1 - torch.tensor(lam)).item()))
    assert trusted.tolist() == [confidence >= needed]


@pytest.mark.parametrize(("confidence", "trusted"), [(0.94, False), (0.951, True)])
def test_fixmatchs_cutoff_is_the_default(confidence: float, trusted: bool) -> None:
    """0.95, whatever the share."""
    assert trusted_pairs(torch.tensor([confidence] * 2), torch.tensor([0.1, 0.5])).tolist() == [trusted] * 2


def test_published_settings_cover_six_policies_of_two_backbones() -> None:
    """All of them rescale without a threshold, and differ in eta."""
    policies = {"mixup", "cutmix", "manifoldmix", "fmix", "saliencymix", "resizemix"}

    assert set(PUBLISHED) == set(itertools.product(["resnet18", "resnext50"], policies))
    assert {config.eta for config in PUBLISHED.values()} == {0.01, 0.05, 0.1, 0.5}
    assert all(config.threshold == 1 for config in PUBLISHED.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eta": -0.1}, "eta .* got -0.1; use 0"),
        ({"eta": math.inf}, "eta .* got inf"),
        ({"sides": "a"}, "sides must be 'both', 'less' or 'more', got 'a'"),
        ({"threshold": 0.0}, "threshold .* got 0.0; use 1"),
        ({"threshold": 1.5}, "threshold .* got 1.5"),
        ({"exponent": -1.0}, "exponent .* got -1.0; use 0"),
        ({"exponent": math.nan}, "exponent .* got nan"),
    ],
)
def test_settings_out_of_bounds_are_refused(settings: dict, message: str) -> None:
    """Each message has the value and the cure."""
    with pytest.raises(ConfigError, match=message):
        DecoupledConfig(**settings)
