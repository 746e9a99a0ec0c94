"""What the classifier minimises: which formula, on which images, by which head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from learning import NUM_CLASSES, labels_of, learning, lively_classifier, random_images
from torch import Tensor
from torch.nn import functional as F

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.decoupled import DecoupledConfig, decoupled_bce, decoupled_cross_entropy
from samix.mixing.losses import mixed_bce, mixed_cross_entropy
from samix.mixing.render import mixed_batch
from trainer.methods.objective import ObjectiveConfig, classify, loss_of_logits

DECOUPLED = DecoupledConfig(eta=0.3, sides="less", threshold=0.8, exponent=0.5)

FORMULAS: dict[str, tuple[ObjectiveConfig, Callable[..., Tensor]]] = {
    "ce": (ObjectiveConfig(), mixed_cross_entropy),
    "ce-smooth": (
        ObjectiveConfig(label_smoothing=0.1),
        partial(mixed_cross_entropy, label_smoothing=0.1),
    ),
    "bce": (ObjectiveConfig(loss="bce"), mixed_bce),
    "bce-smooth-sum": (
        ObjectiveConfig(loss="bce", label_smoothing=0.1, over_classes="sum"),
        partial(mixed_bce, label_smoothing=0.1, over_classes="sum"),
    ),
    "dm-ce": (
        ObjectiveConfig(loss="dm_ce", decoupled=DECOUPLED),
        partial(decoupled_cross_entropy, config=DECOUPLED),
    ),
    "dm-bce": (
        ObjectiveConfig(loss="dm_bce", decoupled=DECOUPLED, over_classes="sum"),
        partial(decoupled_bce, threshold=0.8, exponent=0.5, over_classes="sum"),
    ),
}


def mixed_and_clean() -> tuple[MixedBatch, Tensor]:
    images = random_images()
    plan = MixPlan(lam=torch.linspace(0.1, 0.9, 8), partner=torch.arange(8).roll(3))
    masks = plan.lam.view(-1, 1, 1, 1).expand(8, 1, 16, 16)
    return mixed_batch(images, labels_of(images), plan, masks), images


@pytest.mark.parametrize("name", FORMULAS)
def test_each_loss_is_its_formula(name: str):
    """The settings choose the formula and reach it."""
    config, formula = FORMULAS[name]
    mixed, _ = mixed_and_clean()
    pair = (torch.randn(8, NUM_CLASSES, generator=torch.Generator().manual_seed(1)), mixed.labels_a, mixed.labels_b)

    loss = loss_of_logits(*pair, mixed.lam, config)  # type: ignore[arg-type] - a mixed batch has labels

    assert torch.equal(loss, formula(*pair, mixed.lam))


def test_the_losses_differ():
    """No two of them are the same number."""
    mixed, clean = mixed_and_clean()
    classifier = lively_classifier().eval()

    losses = {round(classify(classifier, mixed, clean, config).item(), 5) for config, _ in FORMULAS.values()}

    assert len(losses) == len(FORMULAS)


@pytest.mark.parametrize("clean_head", [False, True])
@pytest.mark.parametrize("loss", ["ce", "bce", "dm_ce", "dm_bce"])
def test_clean_images_are_added_with_their_weight(loss: Any, clean_head: bool):
    """loss(mixed) + weight * loss(clean), the latter of whole images by the head they have, if any."""
    mixed, clean = mixed_and_clean()
    labels = labels_of(clean)
    classifier = lively_classifier(clean_head=clean_head).eval()

    without, with_clean = (
        classify(classifier, mixed, clean, ObjectiveConfig(loss=loss, clean_weight=weight)) for weight in (0.0, 0.5)
    )

    logits = classifier.clean_logits(clean)
    targets = F.one_hot(labels, NUM_CLASSES).float()
    alone = (
        F.cross_entropy(logits, labels)
        if loss in ("ce", "dm_ce")
        else F.binary_cross_entropy_with_logits(logits, targets)
    )
    torch.testing.assert_close(with_clean, without + 0.5 * alone)


def test_a_clean_head_learns_from_clean_images_alone():
    """Each head gets the gradient of its own images."""
    classifier = lively_classifier(clean_head=True)
    mixed, clean = mixed_and_clean()
    assert classifier.head_one is not None

    classify(classifier, mixed, clean, ObjectiveConfig(clean_weight=1.0)).backward()
    both = classifier.head_one.weight.grad
    classifier.zero_grad()
    classify(classifier, mixed, clean, ObjectiveConfig()).backward()

    assert both is not None
    assert both.any()
    assert not learning(classifier) & {"head_one.weight", "head_one.bias"}


def test_clean_images_may_be_bytes():
    """Clean images come as the loader or the policy left them."""
    classifier, config = lively_classifier().eval(), ObjectiveConfig(clean_weight=1.0)
    mixed, _ = mixed_and_clean()
    pixels = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    loss, expected = (classify(classifier, mixed, clean, config) for clean in (pixels, pixels.float() / 255))

    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"clean_weight": -1.0}, "clean_weight must be a number of at least 0, got -1.0"),
        ({"clean_weight": float("inf")}, "got inf"),
        ({"clean_weight": float("nan")}, "got nan"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, "got -0.1"),
        ({"label_smoothing": 0.1, "loss": "dm_ce"}, "for the losses ce and bce, got dm_ce; set it to 0"),
    ],
)
def test_refuses(settings: dict[str, Any], sentence: str):
    """Weights out of bounds, and a smoothing that no formula knows, are refused by value."""
    with pytest.raises(ConfigError, match=sentence):
        ObjectiveConfig(**settings)
