"""Co-training as the public reference computes it, each difference from the papers by itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import (
    all_parameters,
    labels_of,
    learning,
    lively_classifier,
    random_images,
    snapshot,
)
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer, save_artefact
from samix.mixing.batch import MixPlan
from samix.mixing.block import BlockSpec
from samix.mixing.classifier import Classifier
from samix.mixing.losses import mixed_cross_entropy
from samix.mixing.online import MixerLoss, OnlineMixer
from samix.mixing.online_config import OnlineConfig, StepPlans
from samix.mixing.online_openmixup import build_online_mixer
from samix.mixing.presets import tiny_spec
from samix.mixing.render import Rendering, blend, render_masks

SPEC = replace(tiny_spec(), mode="openmixup", block=BlockSpec(learnable_gamma=False, activation="elu"))
CONFIG = OnlineConfig(per_sample_lam=False, mask_schedule="constant")
LAM = 0.7


@pytest.fixture
def student() -> Classifier:
    return lively_classifier(clean_head=True)


@pytest.fixture
def build(student: Classifier) -> Callable[..., OnlineMixer]:
    """Start a mixer with these settings; its block is always the same."""

    def start(**settings: Any) -> OnlineMixer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            return build_online_mixer(SPEC, replace(CONFIG, **settings), student)

    return start


@pytest.fixture
def online(build: Callable[..., OnlineMixer]) -> OnlineMixer:
    return build()


def plan_of(lam: float, shift: int = 1) -> MixPlan:
    return MixPlan(lam=torch.full((8,), lam), partner=torch.arange(8).roll(shift))


def loss_of(online: OnlineMixer, *, plan: MixPlan | None = None) -> MixerLoss:
    images = random_images()
    features = online.features(images)
    return online.loss(images, labels_of(images), features, plan or plan_of(LAM), step=0, total_steps=10)


def masks_and_scores(online: OnlineMixer, plan: MixPlan) -> tuple[Tensor, Tensor]:
    """Repeat the mixer's branch from its parts."""
    images = random_images()
    logits = online.block(online.features(images), plan.lam, plan.partner)
    masks = render_masks(logits, plan.lam, (16, 16), Rendering(upsampling="bilinear", lam_margin=0.0)).detach()
    return masks, online.classifier(blend(images, plan.partner, masks)).detach()


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_mixers_loss_is_the_mixed_cross_entropy(build: Callable[..., OnlineMixer], eta: float):
    """Whatever eta: the public reference's balanced loss has no effect (B1)."""
    online, plan, labels = build(eta=eta), plan_of(LAM), labels_of(random_images())

    loss = loss_of(online, plan=plan)

    _, scores = masks_and_scores(online, plan)
    expected = mixed_cross_entropy(scores, labels, labels[plan.partner], plan.lam)
    assert loss.classification.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("variance", [True, False])
def test_masks_are_judged_over_the_whole_batch(build: Callable[..., OnlineMixer], variance: bool):
    """One mean for the batch (B6), and its variance counts twice (B7) unless it is switched off."""
    online, plan = build(mask_variance=variance), plan_of(LAM)

    loss = loss_of(online, plan=plan)

    masks, _ = masks_and_scores(online, plan)
    expected = max(abs(masks.mean().item() - LAM) - 0.1, 0) - 2 * variance * masks.var(correction=0).item()
    assert loss.mask.item() == pytest.approx(expected, abs=1e-5)
    assert loss.total.item() == pytest.approx(loss.classification.item() + 0.1 * expected, abs=1e-5)


def test_masks_are_adjusted_to_the_mixers_lam(online: OnlineMixer):
    """The student's masks get the mean of the other batch's lam (B3); its labels keep their own."""
    images = random_images()
    plans = StepPlans(mixers=plan_of(0.35), students=plan_of(0.62, shift=2), adjusts=True)

    mixed = online.mix(images, labels_of(images), online.features(images), plans)

    torch.testing.assert_close(mixed.masks.mean(dim=(1, 2, 3)), torch.full((8,), 0.35))
    assert torch.equal(mixed.lam, plans.students.lam)


def test_the_margin_counts_the_students_lam(online: OnlineMixer):
    """Near 0 and 1 the student's batch is mixed plainly with its own lam, also after the adjustment."""
    images = random_images()
    plans = StepPlans(mixers=plan_of(0.35), students=plan_of(0.95), adjusts=True)

    mixed = online.mix(images, labels_of(images), online.features(images), plans)

    assert (mixed.masks == plans.students.lam.view(-1, 1, 1, 1)).all()


def test_the_copy_trains_its_own_statistics(online: OnlineMixer):
    """The momentum copy is in training mode: a step moves statistics up to the stage twice, those behind it once."""
    before = snapshot(online.classifier)

    loss_of(online)

    after = online.classifier.state_dict()
    moves = {name: int(after[name] - before[name]) for name in after if name.endswith("num_batches_tracked")}
    assert all(count == (1 if ".layer4." in name else 2) for name, count in moves.items())
    assert any(".layer4." in name for name in moves)
    assert not torch.equal(after["backbone.bn1.running_mean"], before["backbone.bn1.running_mean"])


def test_the_copy_follows_parameters_only(online: OnlineMixer):
    """Statistics of the student are not followed: the copy has its own (B8)."""
    ahead = lively_classifier(seed=1, clean_head=True)
    before, target = snapshot(online.classifier), snapshot(ahead)

    online.follow(ahead, step=0, total_steps=10)

    parameters, state = dict(online.classifier.named_parameters()), online.classifier.state_dict()
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.detach(), 0.999 * before[name] + 0.001 * target[name])
    buffers = state.keys() - parameters.keys()
    assert "backbone.bn1.running_mean" in buffers
    assert all(torch.equal(state[name], before[name]) for name in buffers)


def test_the_mixers_loss_teaches_exactly_the_block(online: OnlineMixer, student: Classifier):
    """In training mode, too, gradients pass through the copy into the block and stay nowhere else."""
    loss_of(online).total.backward()

    assert learning(online) >= all_parameters(online.block, "block.") - {"block.key.bias"}
    assert all(parameter.grad is None for parameter in [*online.classifier.parameters(), *student.parameters()])


def test_the_mode_goes_into_the_artefact(online: OnlineMixer, tmp_path: Path):
    """Whoever loads the mixer sees by whose arithmetic it was trained; its masks depend on no batch mate."""
    loss_of(online)
    images, path = random_images(), tmp_path / "mine.safetensors"

    save_artefact(path, online.freeze("mine"), {"data": "none"})

    mixer = load_mixer(path)
    pair = mixer.mix(images[:2], lam=LAM, partner=torch.tensor([1, 0])).masks
    assert mixer.spec.mode == "openmixup"
    torch.testing.assert_close(
        pair, mixer.mix(images, lam=LAM, partner=torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])).masks[:2]
    )


@pytest.mark.parametrize(
    ("config", "block", "sentence"),
    [
        ({"per_sample_lam": True}, {}, "draws one lam per batch; set per_sample_lam to False"),
        ({"mask_schedule": "linear"}, {}, "has mask_schedule 'constant' or 'compounding', got 'linear'"),
        ({}, {"learnable_gamma": True}, "has a fixed gamma; set block.learnable_gamma to False"),
        ({}, {"activation": "relu"}, "has ELU in its content, got 'relu'"),
    ],
)
def test_the_papers_settings_are_refused(
    student: Classifier, config: dict[str, Any], block: dict[str, Any], sentence: str
):
    """What is named after the reference has its settings, each refusal with the cure."""
    spec = replace(SPEC, block=replace(SPEC.block, **block))

    with pytest.raises(ConfigError, match=sentence):
        build_online_mixer(spec, replace(CONFIG, **config), student)


@pytest.mark.parametrize("schedule", ["constant", "compounding"])
def test_the_references_schedules_are_taken(build: Callable[..., OnlineMixer], schedule: str):
    """On CIFAR the weight of the mask loss stays, elsewhere it collapses (B2): half way it has all but gone."""
    online, images = build(mask_schedule=schedule, mask_weight=0.5), random_images()

    loss = online.loss(images, labels_of(images), online.features(images), plan_of(LAM), step=50, total_steps=100)

    share = (loss.total - loss.classification).item() / loss.mask.item()
    assert share == pytest.approx(0.5 if schedule == "constant" else 0.0, abs=1e-3)
