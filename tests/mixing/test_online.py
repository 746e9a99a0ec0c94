"""Co-training as the papers have it: who learns from what, what the copy follows, and what a step draws."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import (
    all_parameters,
    counted_passes,
    is_unchanged,
    labels_of,
    learning,
    lively_classifier,
    random_images,
    snapshot,
)
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.batch import MixPlan
from samix.mixing.classifier import Classifier
from samix.mixing.losses import mixed_cross_entropy
from samix.mixing.mixer_losses import eta_balanced_loss, mask_loss
from samix.mixing.online import MixerLoss, OnlineMixer
from samix.mixing.online_config import OnlineConfig, StepPlans
from samix.mixing.online_openmixup import build_online_mixer
from samix.mixing.plan import draw_plan, generator_for
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, tiny_spec
from samix.mixing.render import Rendering, blend, render_masks

STEPS = 100


@pytest.fixture
def student() -> Classifier:
    return lively_classifier()


@pytest.fixture
def build(student: Classifier) -> Callable[..., OnlineMixer]:
    """Start a mixer with these settings; its block is always the same."""

    def start(**settings: Any) -> OnlineMixer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            return build_online_mixer(tiny_spec(), OnlineConfig(**settings), student)

    return start


@pytest.fixture
def online(build: Callable[..., OnlineMixer]) -> OnlineMixer:
    return build()


@pytest.fixture(scope="module")
def shared() -> OnlineMixer:
    """A mixer for properties, which may be changed."""
    return build_online_mixer(tiny_spec(), OnlineConfig(), lively_classifier())


@pytest.fixture(scope="module")
def ahead() -> Classifier:
    """A student that has moved away from its copy."""
    return lively_classifier(seed=1)


def make_plan(size: int = 8, *, seed: int = 4) -> MixPlan:
    return draw_plan(size, alpha=2.0, generator=generator_for(seed), per_sample=True)


def plans_of(students: MixPlan, *, mixers: MixPlan | None = None, adjusts: bool = False) -> StepPlans:
    return StepPlans(mixers=mixers or make_plan(len(students), seed=9), students=students, adjusts=adjusts)


def loss_of(online: OnlineMixer, *, plan: MixPlan | None = None, step: int = 0) -> MixerLoss:
    images = random_images()
    features = online.features(images)
    return online.loss(images, labels_of(images), features, plan or make_plan(), step=step, total_steps=STEPS)


def learned_masks(online: OnlineMixer, images: Tensor, plan: MixPlan) -> Tensor:
    """Render masks without a margin, from the papers' parts."""
    logits = online.block(online.features(images), plan.lam, plan.partner)
    rendering = Rendering(upsampling="bilinear", lam_margin=0.0)
    return render_masks(logits, plan.lam, (images.shape[2], images.shape[3]), rendering).detach()


def test_the_mixers_loss_teaches_exactly_the_block(online: OnlineMixer, student: Classifier):
    """Gradients reach every parameter of the block, gamma included, and no parameter of either classifier."""
    loss_of(online).total.backward()

    assert "block.gamma" in learning(online)
    # Biases of the key shift all scores of a query alike, which the softmax takes away.
    assert learning(online) >= all_parameters(online.block, "block.") - {"block.key.bias"}
    assert not learning(online.classifier)
    assert all(parameter.grad is None for parameter in [*online.classifier.parameters(), *student.parameters()])


def test_the_students_loss_teaches_exactly_the_student(online: OnlineMixer, student: Classifier):
    """What the mixer hands the student carries no gradient: its loss leaves block and copy alone."""
    images, labels = random_images(), labels_of(random_images())

    mixed = online.mix(images, labels, online.features(images), plans_of(make_plan()))
    student(mixed.images).logsumexp(1).mean().backward()

    assert not mixed.images.requires_grad
    assert learning(student) == all_parameters(student)
    assert all(parameter.grad is None for parameter in online.parameters())


@pytest.mark.parametrize(("step", "weight"), [(0, 0.2), (50, 0.1), (STEPS, 0.0)])
def test_the_objective_is_classification_plus_falling_mask_loss(
    build: Callable[..., OnlineMixer], step: int, weight: float
):
    """total = eta-balanced loss of the mix + weight * mask loss; pairs within the lambda margin learn like others."""
    online, images = build(eta=0.3, mask_weight=0.2, mask_margin=0.05).eval(), random_images()
    labels = labels_of(images)
    plan = MixPlan(lam=torch.linspace(0, 1, 8), partner=make_plan().partner)

    loss = loss_of(online, plan=plan, step=step)

    masks = learned_masks(online, images, plan)
    scores = online.classifier(blend(images, plan.partner, masks))
    classification = eta_balanced_loss(scores, labels, labels[plan.partner], plan.lam, 0.3).item()
    shape = mask_loss(masks, plan.lam, 0.05).item()
    assert loss.total.item() == pytest.approx(classification + weight * shape, rel=1e-5)
    assert (loss.classification.item(), loss.mask.item()) == pytest.approx((classification, shape), rel=1e-5)
    assert loss.lam_error.item() == pytest.approx((masks.mean(dim=(1, 2, 3)) - plan.lam).abs().mean().item(), rel=1e-4)
    assert loss.spread.item() == pytest.approx(masks.flatten(1).std(dim=1).mean().item(), rel=1e-4)


def test_automix_has_neither_local_term_nor_variance(build: Callable[..., OnlineMixer]):
    """Without `pairwise` there is eta times the mixed cross-entropy, without `mask_variance` only the distance."""
    online, images, plan = build(pairwise=False, eta=0.7, mask_variance=False).eval(), random_images(), make_plan()
    labels = labels_of(images)

    loss = loss_of(online, plan=plan)

    masks = learned_masks(online, images, plan)
    scores = online.classifier(blend(images, plan.partner, masks))
    expected = 0.7 * mixed_cross_entropy(scores, labels, labels[plan.partner], plan.lam)
    distances = ((masks.mean(dim=(1, 2, 3)) - plan.lam).abs() - 0.1).clamp_min(0)
    assert loss.classification.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.mask.item() == pytest.approx(distances.mean().item(), rel=1e-5)


def test_features_are_computed_up_to_the_stage_and_no_further(online: OnlineMixer):
    """One encoding runs each layer up to stage 2 once and no later one, and leaves no graph."""
    with counted_passes(online.classifier.backbone) as passes:
        features = online.features(random_images())

    stages = {name.split(".")[0] for name in passes}
    assert stages == {"conv1", "bn1", "layer1", "layer2", "layer3"}
    assert set(passes.values()) == {1}
    assert features.shape == (8, 64, 4, 4)
    assert not features.requires_grad


def test_the_momentum_copy_only_evaluates(online: OnlineMixer):
    """Training whatever holds the mixer trains the block; the copy's weights and statistics stay as they are."""
    before = snapshot(online.classifier)

    nn.ModuleList([online]).eval().train()
    loss_of(online).total.backward()

    assert online.block.training
    assert not any(module.training for module in online.classifier.modules())
    assert is_unchanged(online.classifier, before)


def test_it_starts_as_a_copy_of_the_student(online: OnlineMixer, student: Classifier):
    """The momentum copy has the student's weights and statistics in tensors of its own, and does not learn."""
    original = student.state_dict()

    assert is_unchanged(online.classifier, original)
    assert not any(copy.data_ptr() == original[key].data_ptr() for key, copy in online.classifier.state_dict().items())
    assert not any(parameter.requires_grad for parameter in online.classifier.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


@settings(max_examples=10)
@given(momentum=st.floats(0, 1))
def test_the_copy_follows_weights_and_statistics(shared: OnlineMixer, ahead: Classifier, momentum: float):
    """copy = m * copy + (1 - m) * student, for parameters and batch-norm statistics alike; the student stays."""
    online = OnlineMixer(
        shared.spec, OnlineConfig(momentum=momentum, momentum_end=momentum), shared.classifier, shared.block
    )
    before, target = snapshot(online.classifier), snapshot(ahead)

    online.follow(ahead, step=3, total_steps=STEPS)

    followed = {key: value for key, value in online.classifier.state_dict().items() if value.is_floating_point()}
    assert "backbone.bn1.running_var" in followed
    assert is_unchanged(ahead, target)
    for key, value in followed.items():
        expected = momentum * before[key].double() + (1 - momentum) * target[key].double()
        torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)


def test_the_copys_momentum_rises_over_the_run(build: Callable[..., OnlineMixer], ahead: Classifier):
    """The first steps follow with `momentum`, the last one with `momentum_end`."""
    online = build(momentum=0.0, momentum_end=1.0)
    before = snapshot(online.classifier)

    online.follow(ahead, step=STEPS, total_steps=STEPS)

    assert is_unchanged(online.classifier, before)
    online.follow(ahead, step=0, total_steps=STEPS)
    torch.testing.assert_close(list(online.classifier.parameters()), list(ahead.parameters()))


def test_the_copys_momentum_may_rise_later(build: Callable[..., OnlineMixer], ahead: Classifier):
    """Vision transformers keep the first momentum for a quarter of the run."""
    online = build(momentum=1.0, momentum_end=1.0, momentum_constant_share=0.0)
    early = build(momentum=0.0, momentum_end=1.0, momentum_constant_share=0.25)
    before = snapshot(online.classifier)

    for mixer in (online, early):
        mixer.follow(ahead, step=STEPS // 5, total_steps=STEPS)

    assert is_unchanged(online.classifier, before)
    torch.testing.assert_close(list(early.classifier.parameters()), list(ahead.parameters()))


def test_the_student_gets_the_students_plan(online: OnlineMixer):
    """Lambdas, partners and labels of the student's batch are those of its own plan, whatever the mixer's batch."""
    images, students = random_images(), make_plan()
    labels, features = labels_of(images), online.features(images)
    online.eval()

    mixed, other = (
        online.mix(images, labels, features, plans_of(students, mixers=make_plan(seed=seed))) for seed in (5, 6)
    )

    masks = learned_masks(online, images, students)
    assert torch.equal(mixed.images, other.images)
    assert torch.equal(mixed.lam, students.lam)
    assert mixed.labels_b is not None
    assert torch.equal(mixed.labels_b, labels[students.partner])
    torch.testing.assert_close(mixed.masks, masks)
    torch.testing.assert_close(mixed.images, blend(images, students.partner, masks))


@settings(max_examples=10)
@given(lam=st.lists(st.floats(0.0, 1.0, width=32), min_size=2, max_size=8))
def test_adjusted_masks_weigh_the_students_lam(shared: OnlineMixer, lam: list[float]):
    """Adjusted masks have the mean of the student's lam; after that, those within the margin become constant."""
    images = random_images(len(lam))
    plan = MixPlan(lam=torch.tensor(lam), partner=torch.arange(len(lam)).roll(1))

    masks = shared.mix(images, labels_of(images), shared.features(images), plans_of(plan, adjusts=True)).masks

    torch.testing.assert_close(masks.mean(dim=(1, 2, 3)), plan.lam, atol=1e-5, rtol=1e-5)
    plain = torch.minimum(plan.lam, 1 - plan.lam) <= shared.spec.rendering.lam_margin
    assert (masks[plain] == plan.lam[plain].view(-1, 1, 1, 1)).all()
    learned = masks[~plain].flatten(1)
    assert (learned.amax(dim=1) > learned.amin(dim=1)).all()


def test_masks_are_adjusted_only_when_drawn(online: OnlineMixer):
    """Without the adjustment learned masks keep their mean, which is not lam."""
    images, plan = random_images(), MixPlan(lam=torch.full((8,), 0.25), partner=torch.arange(8).roll(1))

    masks = online.mix(images, labels_of(images), online.features(images), plans_of(plan)).masks

    assert ((masks.mean(dim=(1, 2, 3)) - 0.25).abs() > 0.1).all()


def test_a_frozen_copy_makes_the_same_mixes(online: OnlineMixer):
    """What is shipped gives the masks that the mixer in training gives in evaluation mode."""
    images, plan = random_images(), make_plan()
    loss_of(online)  # moves the block's statistics

    frozen = online.freeze("mine")

    online.eval()
    mixed = online.mix(images, labels_of(images), online.features(images), plans_of(plan))
    again = frozen.mix(images, labels_of(images), lam=plan.lam, partner=plan.partner)
    assert frozen.name == "mine"
    torch.testing.assert_close(again.masks, mixed.masks, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(again.images, mixed.images, atol=1e-6, rtol=1e-6)


def test_a_frozen_copy_is_of_its_moment(online: OnlineMixer):
    """Freezing neither disturbs the training nor follows it, and draws nothing from the global random state."""
    images, plan = random_images(), make_plan()
    before, state = snapshot(online), torch.get_rng_state()

    frozen = online.freeze("mine")
    logits = frozen.mask_logits(images, plan)

    assert is_unchanged(online, before)
    assert online.block.training
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for value in online.parameters():
            value.add_(1.0)
    assert torch.equal(frozen.mask_logits(images, plan), logits)


def test_the_mixer_learns(online: OnlineMixer):
    """A few steps on one batch lower its loss, and gamma stays in [0, 1]."""
    optimiser = torch.optim.SGD(online.block.parameters(), lr=1.0, momentum=0.9)
    losses = []

    for _ in range(20):
        loss = loss_of(online).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        online.block.project()
        losses.append(loss.item())

    assert losses[-1] < losses[0] - 0.01
    assert 0 <= online.block.gamma.item() <= 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stage": 4}, r"stage must be 0\.\.3 for this backbone, got 4"),
        ({"mean": CIFAR_MEAN}, r"the mixer's mean is \(0.4914, .*, the classifier's \(0.5, 0.5, 0.5\)"),
        ({"std": CIFAR_STD}, "the mixer's std is"),
    ],
)
def test_a_mixer_of_another_classifier_is_refused(student: Classifier, settings: dict[str, Any], sentence: str):
    """A mixer that could not be shipped with the encoder it learns with does not start."""
    with pytest.raises(ConfigError, match=sentence):
        build_online_mixer(replace(tiny_spec(), **settings), OnlineConfig(), student)
