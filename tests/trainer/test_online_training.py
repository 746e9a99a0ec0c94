"""SAMix online as a training method: one step, many steps, several ranks, and the program around them."""

import copy
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import (
    NUM_CLASSES,
    SIDE,
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
from torch.nn.parallel import DistributedDataParallel
from training import ALONE, OPENMIXUP_FLAGS, events_of, join_as, spawn_two_ranks, summary_of

from samix.mixing.artefact import load_mixer, read_provenance
from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.online_config import OnlineConfig, draw_step_plans
from samix.mixing.plan import generator_for
from samix.mixing.presets import tiny_spec
from services.shards.dataset import Batch
from trainer.checkpoint import load_checkpoint
from trainer.cli import main
from trainer.loop import Precision, Step, train_epoch
from trainer.methods.build import build_method, open_batches
from trainer.methods.config import CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.model import ModelConfig, build_classifier
from trainer.optimise import OptimiserConfig, Update
from trainer.planning import Planned, Planning
from trainer.recipes import RECIPES

STEPS = 4
OPENMIXUP = {"mode": "openmixup", "per_sample_lam": False, "clean_weight": 1.0, "mask_schedule": "constant"}
CLEAN = {"clean_weight": 1.0}


def co_training(*, mode: Any = "paper", clean_weight: float = 0.0, seed: int = 0, **online: Any) -> CoTraining:
    """Start co-training with these settings."""
    is_paper = mode == "paper"
    block = BlockSpec(learnable_gamma=is_paper, activation="relu" if is_paper else "elu")
    return CoTraining.build(
        lively_classifier(clean_head=not is_paper),
        replace(tiny_spec(), mode=mode, block=block),
        OnlineConfig(**online),
        ObjectiveConfig(clean_weight=clean_weight),
        seed=seed,
        total_steps=STEPS,
    )


def planned(step: int = 0, *, rank: int = 0, size: int = 8, per_sample_lam: bool = True) -> Planned:
    """Make the batch of a rank and a step."""
    images = (random_images(size, seed=10 * step + rank) * 255).to(torch.uint8)
    plans = draw_step_plans(size, OnlineConfig(per_sample_lam=per_sample_lam), generator_for(step, rank))
    return Planned(images=images, labels=labels_of(images), plans=plans, step=step)


def optimisers(method: CoTraining) -> Update:
    return method.build_update(OptimiserConfig(lr=0.05), OptimiserConfig(kind="adamw", lr=0.01))


def train(method: CoTraining, steps: int = STEPS, precision: Precision = "fp32") -> list[Step]:
    items = (planned(step) for step in range(steps))
    return list(train_epoch(method, method, items, optimisers(method), TrainerMetrics(0), precision=precision))


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
    fixed = {"online.block.key.bias"} | (set() if method.online.block.gamma.requires_grad else {"online.block.gamma"})
    assert taught - fixed <= learning(method) <= taught
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


@pytest.mark.parametrize(
    ("backbone", "stage", "stride"), [("wide_resnet10_1", 1, 2), ("torchvision/resnet18", 1, 8), ("resnet18", 2, 16)]
)
def test_the_mixer_fits_any_backbone(backbone: str, stage: int, stride: int):
    """Settings follow the backbone that is trained, so that what is learnt can be shipped at the end."""
    model = ModelConfig(backbone=BackboneSpec(name=backbone))
    config = CoTrainingConfig(stage=stage)

    spec = config.mixer_spec(model, SIDE)
    method = CoTraining.build(
        build_classifier(model, NUM_CLASSES, seed=0), spec, config, ObjectiveConfig(), seed=0, total_steps=STEPS
    )

    assert spec.stride == stride
    assert method.online.freeze("mine").spec == spec


@pytest.mark.parametrize(
    ("mode", "clean_weight", "two_heads"), [("openmixup", 1.0, True), ("openmixup", 0.0, False), ("paper", 1.0, False)]
)
def test_a_clean_head_is_there_only_where_it_learns(mode: Any, clean_weight: float, two_heads: bool):
    """The public reference's second head comes with its loss; without one it would stay random, and DDP would hang."""
    config = RECIPES["digits_cpu"][1]
    config = replace(
        config,
        mixing=replace(config.mixing, policy="online"),
        online=replace(
            config.online,
            mode=mode,
            per_sample_lam=False,
            mask_schedule="constant",
            block=BlockSpec(learnable_gamma=False, activation="elu"),
        ),
        objective=ObjectiveConfig(clean_weight=clean_weight),
    )

    method, _ = build_method(config, total_steps=STEPS, device=torch.device("cpu"))

    assert (method.classifier.head_one is not None) == two_heads


@pytest.mark.parametrize(("set_for_all", "used"), [(0.0, 2.0), (0.4, 0.4)])
def test_an_alpha_for_all_policies_holds_online_too(set_for_all: float, used: float):
    """`--mixing.alpha` draws the lambdas of policy `online` as well; 0 leaves it to the settings of the mixer."""
    config = RECIPES["digits_cpu"][1]
    config = replace(config, mixing=replace(config.mixing, policy="online", alpha=set_for_all))

    with open_batches(config, co_training(), ALONE, TrainerMetrics(0), steps_per_epoch=2) as batches:
        assert isinstance(batches, Planning)
        assert batches.config == replace(config.online, alpha=used)


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


def train_as_rank(rank: int, port: int, folder: Path, settings: dict[str, Any]) -> None:
    """Train some steps under DDP, as one of two ranks, and write what is left after the first and the last."""
    torch.set_num_threads(1)
    with join_as(rank, port) as world:
        method = co_training(**settings)
        update, states = optimisers(method), []
        items = (planned(step, rank=rank, per_sample_lam=method.online.config.per_sample_lam) for step in range(STEPS))
        for _ in train_epoch(DistributedDataParallel(method), method, items, update, TrainerMetrics(rank)):
            states.append(snapshot(method))
        world.share_buffers(method)
        torch.save({"states": states, "shared": snapshot(method)}, folder / f"rank{rank}.pt")


def averaged_steps(method: CoTraining) -> Iterator[dict[str, Tensor]]:
    """Train in this process on both ranks' batches: averaged gradients, buffers of rank 0."""
    update = optimisers(method).apply
    per_sample_lam = method.online.config.per_sample_lam
    for step in range(STEPS):
        items = [planned(step, rank=rank, per_sample_lam=per_sample_lam) for rank in range(2)]
        replicas = [copy.deepcopy(method) for _ in items]
        for replica, item in zip(replicas, items, strict=True):
            replica(item).total.backward()
        method.load_state_dict(replicas[0].state_dict())
        update(with_averaged_gradients(method, replicas))
        method.updated(items[0])
        yield snapshot(method)


def with_averaged_gradients(method: nn.Module, replicas: list[CoTraining]) -> Tensor:
    """Make a loss whose gradient is the mean of the replicas' gradients."""
    terms = []
    for parameter, *others in zip(method.parameters(), *(replica.parameters() for replica in replicas), strict=True):
        grads = [other.grad for other in others if other.grad is not None]
        if grads:
            terms.append((parameter * torch.stack(grads).mean(dim=0)).sum())
    return torch.stack(terms).sum()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, OPENMIXUP], ids=["paper", "openmixup"])
def test_two_ranks_train_as_one(tmp_path: Path, settings: dict[str, Any]):
    """Steps of two ranks are steps on their averaged gradients, for classifier, block and copy alike."""
    spawn_two_ranks(train_as_rank, tmp_path, settings)

    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    method = co_training(**settings).train()
    learnt = dict(method.named_parameters()).keys()
    for expected, mine, theirs in zip(averaged_steps(method), first["states"], second["states"], strict=True):
        for name in expected:
            torch.testing.assert_close(mine[name], expected[name], atol=1e-5, rtol=1e-4)
        assert all(torch.equal(mine[name], theirs[name]) for name in learnt)
    assert all(torch.equal(value, second["shared"][name]) for name, value in first["shared"].items())
    assert all(torch.equal(value, first["states"][-1][name]) for name, value in first["shared"].items())
    assert any(not torch.equal(value, second["states"][-1][name]) for name, value in first["shared"].items())


def samix_train(data: list[str], out: Path, *flags: str) -> dict[str, Any]:
    page = ["--metrics.port", "0", "--metrics.linger-s", "0", "--device", "cpu"]
    assert main(["digits_cpu", *data, *page, "--mixing.policy", "online", "--out", str(out), *flags]) == 0
    return summary_of(out)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_leaves_classifier_and_mixer(data: list[str], tmp_path: Path, precision: str):
    """`samix train --mixing.policy online` leaves a mixer that loads, its quality, and the accuracy of every head."""
    out = tmp_path / "mine"

    summary = samix_train(data, out, "--epochs", "2", "--precision", precision)

    mixer, provenance = load_mixer(out / "mixer.safetensors"), read_provenance(out / "mixer.safetensors")
    state = load_checkpoint(out / "checkpoint.pt")
    assert summary["policy"] == "online"
    assert summary["mixer"] == str(out / "mixer.safetensors")
    assert 0 < summary["lam_error"] < 0.5
    assert set(summary["top1_of_heads"]) == {"mix_q", "mix_k"}
    assert summary["top1_of_heads"]["mix_q"] == summary["top1"]
    assert mixer.name == "mine"
    assert mixer.spec.mode == "paper"
    assert mixer.mix(torch.rand(2, 3, 16, 16), seed=0).masks.isfinite().all()
    assert provenance.items() >= {"recipe": "digits_cpu", "epochs": "2", "spread": f"{summary['spread']:.4f}"}.items()
    stored = [*state["model"].values(), *state["method"]["online"].values()]
    assert all(value.isfinite().all() for value in stored)
    assert torch.bfloat16 not in {value.dtype for value in stored}
    for row in events_of(out):
        assert {"loss", "mixer_loss", "lam_error", "spread"} <= row.keys()


def test_a_run_of_the_references_way(data: list[str], tmp_path: Path):
    """In mode `openmixup` there are four heads, and the mixer says by whose arithmetic it was trained."""
    summary = samix_train(data, tmp_path, "--epochs", "1", *OPENMIXUP_FLAGS)

    assert set(summary["top1_of_heads"]) == {"mix_q", "one_q", "mix_k", "one_k"}
    assert load_mixer(summary["mixer"]).spec.mode == "openmixup"


def test_a_run_too_short_for_its_mixer_says_so(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A mixer that cannot have learnt anything yet is remarked on in the log, with the cure."""
    samix_train(data, tmp_path, "--epochs", "1")

    log = capsys.readouterr().err
    assert "WARNING trainer.methods.online masks_still_trivial spread=" in log
    assert 'cure="train longer, or lower --online.momentum"' in log
