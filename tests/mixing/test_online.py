"""Co-training: the block learns, the momentum copy follows, the student learns from its own loss alone."""

import pytest
import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.backbone import build_backbone
from samix.mixing.batch import MixPlan, as_unit_float
from samix.mixing.losses import eta_balanced_loss, mask_loss, mixed_cross_entropy
from samix.mixing.online import OnlineConfig, OnlineMixer
from samix.mixing.plan import draw_plan, generator_for
from samix.mixing.presets import TINY_RESNET, tiny_spec
from samix.mixing.render import Rendering, blend, render_masks

NUM_CLASSES = 4


@pytest.fixture
def student() -> nn.Module:
    """A classifier with batch-norm statistics of its own, as after some training."""
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_backbone(TINY_RESNET, NUM_CLASSES).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
    network(torch.randn(16, 3, 32, 32, generator=generator))
    return network


@pytest.fixture
def online(student: nn.Module) -> OnlineMixer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return OnlineMixer.build(tiny_spec(), OnlineConfig(), student, NUM_CLASSES)


def batch(size: int = 8) -> tuple[Tensor, Tensor, MixPlan]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(size) % NUM_CLASSES
    return images, labels, draw_plan(size, alpha=2.0, generator=generator_for(4), per_sample=True)


def grads(module: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_the_mixers_loss_teaches_exactly_the_block(online: OnlineMixer, student: nn.Module) -> None:
    """Gradients reach every parameter of the block, gamma included, and no parameter of either classifier."""
    images, labels, plan = batch()

    online.loss(images, labels, online.features(images), plan, progress=0.0).total.backward()

    for name, parameter in online.block.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert (online.block.gamma.grad != 0).all()
    assert not grads(online.classifier)
    assert not grads(student)


def test_the_student_learns_from_its_own_loss_alone(online: OnlineMixer, student: nn.Module) -> None:
    """What the mixer hands the student carries no gradient: the student's loss leaves the block alone."""
    images, labels, plan = batch()

    mixed = online.mix(images, labels, online.features(images), plan)
    assert mixed.labels_a is not None
    assert mixed.labels_b is not None
    scores = student(online.normalise(mixed.images))
    mixed_cross_entropy(scores, mixed.labels_a, mixed.labels_b, mixed.lam).backward()

    assert not mixed.images.requires_grad
    assert len(grads(student)) == len(list(student.parameters()))
    assert not grads(online)


def test_the_objective_is_classification_plus_falling_mask_loss(online: OnlineMixer) -> None:
    """total = eta-balanced loss of the mixed batch + 0.1 * (1 - progress) * mask loss, without a lam margin."""
    images, labels, plan = batch()
    online.eval()  # or the block's statistics move between the two
    features = online.features(images)

    early, middle, late = (online.loss(images, labels, features, plan, progress) for progress in (0.0, 0.5, 1.0))

    logits = online.block(features, plan.lam, plan.partner)
    masks = render_masks(logits, plan.lam, (32, 32), Rendering(upsampling="bilinear", lam_margin=0.0))
    mixed = blend(as_unit_float(images), plan.partner, masks)
    scores = online.classifier(online.normalise(mixed))
    classification = eta_balanced_loss(scores, labels, labels[plan.partner], plan.lam, 0.5).item()
    shape = mask_loss(masks, plan.lam, 0.1).item()
    assert early.total.item() == pytest.approx(classification + 0.1 * shape, rel=1e-5)
    assert middle.total.item() == pytest.approx(classification + 0.05 * shape, rel=1e-5)
    assert late.total.item() == pytest.approx(classification, rel=1e-5)
    assert (late.classification, late.mask) == pytest.approx((classification, shape), rel=1e-5)
    assert late.lam_error == pytest.approx((masks.mean(dim=(1, 2, 3)) - plan.lam).abs().mean().item(), rel=1e-4)
    assert late.spread == pytest.approx(masks.flatten(1).std(dim=1).mean().item(), rel=1e-4)


def test_the_momentum_copy_only_evaluates(online: OnlineMixer) -> None:
    """Training the mixer moves neither the copy's weights nor its batch-norm statistics."""
    images, labels, plan = batch()
    before = snapshot(online.classifier)

    online.train()
    online.loss(images, labels, online.features(images), plan, 0.0).total.backward()

    assert online.block.training
    assert not any(module.training for module in online.classifier.modules())
    assert unchanged(online.classifier, before)


def test_it_starts_as_a_copy_of_the_student(online: OnlineMixer, student: nn.Module) -> None:
    """The momentum copy has the student's weights and statistics in tensors of its own."""
    original = student.state_dict()

    assert unchanged(online.classifier, original)
    assert not any(copy.data_ptr() == original[key].data_ptr() for key, copy in online.classifier.state_dict().items())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_the_copy_follows_weights_and_statistics(online: OnlineMixer, student: nn.Module, momentum: float) -> None:
    """copy = m * copy + (1 - m) * student, for parameters and batch-norm statistics alike; the student stays."""
    with torch.no_grad():
        for value in student.state_dict().values():
            if value.is_floating_point():
                value.add_(0.25)
    before, target = snapshot(online.classifier), snapshot(student)

    online.follow(student, momentum)

    followed = online.classifier.state_dict()
    assert "bn1.running_var" in followed
    for key, value in followed.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, momentum * before[key] + (1 - momentum) * target[key])
    assert unchanged(student, target)


@pytest.mark.parametrize(
    ("progress", "momentum"),
    [
        (0.0, 0.999),
        (0.0999, 0.999),
        (0.1, 0.999024),
        (0.25, 0.999146),
        (0.5, 0.9995),
        (0.75, 0.999853),
        (1.0, 0.999999),
    ],
)
def test_momentum_rises_as_published(online: OnlineMixer, progress: float, momentum: float) -> None:
    """Constant for a tenth of the run, then a cosine to its end: the values the reference prints."""
    assert online.momentum_at(progress) == pytest.approx(momentum, abs=1e-6)


def test_a_frozen_copy_makes_the_same_masks(online: OnlineMixer) -> None:
    """What is shipped gives the masks that the mixer in training gives in evaluation mode."""
    images, labels, plan = batch()
    online.loss(images, labels, online.features(images), plan, 0.0)  # moves the block's statistics

    frozen = online.freeze("mine")

    online.eval()
    logits = online.block(online.features(images), plan.lam, plan.partner)
    torch.testing.assert_close(frozen.mask_logits(images, plan), logits.detach(), atol=1e-6, rtol=1e-6)
    assert frozen.name == "mine"
    torch.testing.assert_close(
        frozen.mix(images, labels, lam=plan.lam, partner=plan.partner).images,
        online.mix(images, labels, online.features(images), plan).images,
    )


def test_a_frozen_copy_is_of_its_moment(online: OnlineMixer) -> None:
    """Freezing neither disturbs the training nor follows it, and draws nothing from the global random state."""
    images, _, plan = batch()
    before, state = snapshot(online), torch.get_rng_state()

    frozen = online.freeze("mine")
    logits = frozen.mask_logits(images, plan)

    assert unchanged(online, before)
    assert online.block.training
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        for value in online.parameters():
            value.add_(1.0)
    assert torch.equal(frozen.mask_logits(images, plan), logits)


def test_it_learns(online: OnlineMixer) -> None:
    """A few steps on one batch lower the mixer's loss, and gamma stays in [0, 1]."""
    images, labels, plan = batch()
    features = online.features(images)
    optimiser = torch.optim.SGD(online.block.parameters(), lr=1.0, momentum=0.9)
    losses = []

    for _ in range(20):
        loss = online.loss(images, labels, features, plan, 0.0).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        online.block.project()
        losses.append(loss.item())

    assert losses[-1] < losses[0] - 0.01
    assert 0 <= online.block.gamma.item() <= 1


@pytest.mark.parametrize(("start", "end"), [(0.99, 0.9), (-0.1, 0.9), (0.9, 1.1), (float("nan"), 1.0)])
def test_an_impossible_momentum_is_refused(start: float, end: float) -> None:
    """Momentum rises within [0, 1]."""
    with pytest.raises(ConfigError, match=f"got {start} and {end}"):
        OnlineConfig(momentum=start, momentum_end=end)
