"""SAMix online as a training method: what a step computes, teaches and draws, and what many steps leave."""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from co_training import CLEAN, OPENMIXUP, STEPS, co_training, optimisers, planned
from learning import (
    NUM_CLASSES,
    SIDE,
    all_parameters,
    counted_passes,
    is_unchanged,
    learning,
    random_images,
    snapshot,
)
from torch import Tensor

from samix.mixing.online_config import OnlineConfig
from services.shards.dataset import Batch
from trainer.loop import Precision, Step, Stepping, train_epoch
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.planning import Planning


def train(method: CoTraining, steps: int = STEPS, precision: Precision = "fp32") -> list[Step]:
    items = (planned(step) for step in range(steps))
    stepping = Stepping(precision=precision)
    metrics, update = TrainerMetrics(0), optimisers(method)
    return list(train_epoch(method, method, items, update, metrics, seeds=int, stepping=stepping))


def parameters_of(method: CoTraining) -> list[Tensor]:
    return [value.detach().clone() for value in method.parameters()]


@pytest.mark.parametrize("settings", [{}, CLEAN, OPENMIXUP], ids=["paper", "clean", "openmixup"])
def test_one_backward_teaches_exactly_classifier_and_block(settings: dict[str, Any]):
    """Every parameter of the classifier, its heads and the block learns; the momentum copy has no gradient at all."""
    method = co_training(**settings)

    losses = method(planned(per_sample_lam=method.online.config.per_sample_lam))
    losses.total.backward()

    taught = all_parameters(method.classifier, "classifier.") | all_parameters(method.online.block, "online.block.")
    # A bias of the key shifts all scores of a query alike, which the softmax takes away.
    assert taught - {"online.block.key.bias"} <= learning(method) <= taught
    assert all(parameter.grad is None for parameter in method.online.classifier.parameters())


@pytest.mark.parametrize("settings", [{}, CLEAN], ids=["mixed", "clean"])
def test_each_loss_teaches_its_own_half(settings: dict[str, Any]):
    """The gradients of the sum are those of the classifier's loss and of the mixer's, each computed alone."""
    item, together, alone = planned(), co_training(**settings), co_training(**settings)
    together(item).total.backward()

    images = item.images.float() / 255
    features = alone.online.features(images)
    alone.online.loss(images, item.labels, features, item.plans.mixers, step=0, total_steps=STEPS).total.backward()

    assert learning(alone) == learning(together) & all_parameters(alone.online.block, "online.block.")
    for expected, parameter in zip(alone.online.block.parameters(), together.online.block.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


@pytest.mark.parametrize(
    ("settings", "student_passes"), [({}, 1), (CLEAN, 2), (OPENMIXUP, 2)], ids=["paper", "clean", "openmixup"]
)
def test_no_forward_is_wasted(settings: dict[str, Any], student_passes: int):
    """A step encodes once up to the stage, judges once, and runs the student once, twice with clean images."""
    method = co_training(**settings)
    item = planned(per_sample_lam=method.online.config.per_sample_lam)

    with (
        counted_passes(method.classifier.backbone) as student,
        counted_passes(method.online.classifier.backbone) as copied,
        counted_passes(method.online.block) as block,
    ):
        method(item).total.backward()
        method.updated(item)

    assert {name for name, count in copied.items() if count == 1} == {
        name for name in copied if name.startswith(("layer4", "fc"))
    }
    assert set(copied.values()) == {1, 2}
    heads = student_passes if method.classifier.head_one is None else 1
    assert student.pop("fc") == heads
    assert set(student.values()) == {student_passes}
    assert set(block.values()) == {2}


def test_mixer_and_student_are_planned_apart():
    """The mixer's plan decides the mixer's loss alone, the student's plan the student's alone."""
    method, item = co_training().eval(), planned()
    other = planned(step=1).plans

    usual, others_mixer, others_student = (
        method(replace(item, plans=plans))
        for plans in (
            item.plans,
            replace(item.plans, mixers=other.mixers),
            replace(item.plans, students=other.students),
        )
    )

    assert usual.classifier == others_mixer.classifier != others_student.classifier
    assert usual.figures["mixer_loss"] == others_student.figures["mixer_loss"] != others_mixer.figures["mixer_loss"]


def test_after_a_step_gamma_is_in_bounds_and_the_copy_follows():
    """What the optimisers did to gamma is projected, and the copy moves towards the updated student."""
    method = co_training(momentum=0.0, momentum_end=0.0)
    with torch.no_grad():
        method.online.block.gamma.fill_(-0.5)
        for parameter in method.classifier.parameters():
            parameter.add_(0.1)

    method.updated(planned())

    assert method.online.block.gamma.item() == 0
    assert is_unchanged(method.online.classifier, snapshot(method.classifier))


def test_the_mixer_is_drawn_from_the_seed():
    """The same seed gives every rank the same block; the global random state is left as it was."""
    before = torch.get_rng_state()

    first, second, other = co_training(), co_training(), co_training(seed=1)

    assert is_unchanged(second, snapshot(first))
    assert not is_unchanged(other.online.block, snapshot(first.online.block))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_stays_finite(precision: Precision):
    """Losses, mask logits and all that is stored are finite and float32, in bf16 autocast too, and everything moves."""
    method, finite = co_training(), []
    method.online.block.register_forward_hook(
        lambda _module, _args, logits: finite.append(logits.dtype == torch.float32 and bool(logits.isfinite().all()))
    )
    before = parameters_of(method)

    steps = train(method, precision=precision)

    assert finite == [True] * 2 * STEPS
    assert all(torch.tensor([step.loss, *step.figures.values()]).isfinite().all() for step in steps)
    assert all(value.isfinite().all() for value in method.state_dict().values())
    assert {value.dtype for value in method.parameters()} == {torch.float32}
    moved = [not torch.equal(one, other) for one, other in zip(before, method.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # the bias of the key alone has no effect, hence no gradient


def test_bf16_comes_close_to_fp32():
    """Half precision changes the losses by rounding, not in kind."""
    full, half = (train(co_training(), precision=precision) for precision in ("fp32", "bf16"))

    for one, other in zip(full, half, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=0.05)
        assert other.loss != one.loss
        assert other.figures["lam_error"] == pytest.approx(one.figures["lam_error"], abs=0.02)


def test_features_a_thousand_times_too_large_stay_finite():
    """An encoder whose features have grown by 1e3 breaks neither masks nor losses in bf16."""
    method, item = co_training(), planned()
    features = method.online.features(item.images.float() / 255) * 1e3

    loss = method.online.loss(
        item.images.float() / 255, item.labels, features.bfloat16(), item.plans.mixers, step=0, total_steps=STEPS
    )
    loss.total.backward()

    assert loss.total.isfinite()
    assert all(value.grad.isfinite().all() for value in method.online.block.parameters() if value.grad is not None)


@pytest.mark.parametrize(
    ("spread", "progress", "warns"), [(0.01, 0.5, True), (0.01, 1.0, True), (0.01, 0.4, False), (0.05, 1.0, False)]
)
def test_trivial_masks_are_remarked_on(caplog: pytest.LogCaptureFixture, spread: float, progress: float, warns: bool):
    """After half of a run whose masks are still constant a warning names the spread and the cure; before, none does."""
    with caplog.at_level(logging.INFO, "trainer"):
        co_training().epoch_done({"spread": spread}, progress)

    assert [record.message for record in caplog.records] == ["masks_still_trivial"] * warns
    for record in caplog.records:
        assert vars(record)["spread"] == spread
        assert "--online.momentum" in vars(record)["cure"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [({}, ["mix_q", "mix_k"]), (OPENMIXUP, ["mix_q", "one_q", "mix_k", "one_k"])],
    ids=["paper", "openmixup"],
)
def test_every_head_has_a_name(settings: dict[str, Any], names: list[str]):
    """Heads are named as the public reference does: q is the student, k the momentum copy."""
    method, images = co_training(**settings).eval(), random_images()
    with torch.no_grad():
        method.online.classifier.backbone.fc.bias.add_(1.0)  # type: ignore[union-attr]

    heads = method.further_heads()

    assert list(heads) == names
    assert torch.equal(heads["mix_q"](images), method.classifier(images))
    assert torch.equal(heads["mix_k"](images), method.online.classifier(images))
    assert not torch.equal(heads["mix_q"](images), heads["mix_k"](images))
    assert all(head(images).shape == (8, NUM_CLASSES) for head in heads.values())


def test_state_goes_to_another_process_and_back():
    """Momentum copy and block are what a checkpoint needs beside the classifier."""
    method, other = co_training(), co_training(seed=1)
    train(method)

    other.classifier.load_state_dict(method.classifier.state_dict())
    other.load_further_state(method.further_state())

    assert is_unchanged(other, snapshot(method))


def test_plans_depend_on_seed_epoch_step_and_rank():
    """What a step draws is a function of run seed, epoch, step and rank; steps are counted over the whole run."""
    batch = Batch(
        images=torch.zeros(64, 3, SIDE, SIDE, dtype=torch.uint8), labels=torch.zeros(64).long(), positions=Tensor()
    )
    planning = Planning(config=OnlineConfig(), run_seed=0, rank=0, steps_per_epoch=2, device=torch.device("cpu"))

    def lams(planning: Planning, epoch: int) -> list[Tensor]:
        return [item.plans.students.lam for item in planning.epoch(epoch, [batch, batch])]

    every = [*lams(planning, 0), *lams(planning, 1), *lams(replace(planning, rank=1), 0)]
    every += lams(replace(planning, run_seed=1), 0)
    assert [item.step for item in planning.epoch(3, [batch, batch])] == [6, 7]
    assert [len(item) for item in planning.epoch(0, [batch])] == [64]
    assert len({tuple(lam.tolist()) for lam in every}) == len(every)
    assert torch.equal(lams(planning, 1)[0], every[2])
