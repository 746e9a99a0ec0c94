"""Remote co-training computes what the in-process pipeline does."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from co_training import planned
from online_sessions import (
    BATCH,
    MIXERS,
    TOTAL_STEPS,
    call_of,
    items_of,
    masks_of,
    owned,
    pipeline,
    settings_of,
    step_in_process,
    training_server,
    updates,
    write_state,
)
from serving import WAIT_S
from torch import Tensor

from mixer_server.online.learner import Learner
from samix.client.online.session import SessionKey
from samix.cotraining.settings import SessionSettings
from samix.mixing.batch import as_unit_float
from samix.mixing.online import floating_state
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.schedules import ema_momentum
from samix.mixing.students import compose_students
from samix.mixing.update import Update
from trainer.methods.objective import classify
from trainer.methods.online import CoTraining
from trainer.planning import Planned

MODES: list[tuple[str, dict[str, Any]]] = [
    ("paper", {"mask_adjust": 0.5}),
    ("openmixup", {"mask_adjust": 0.5, "mask_schedule": "constant"}),
]
STEPS = 20
CLASSIFIERS = OptimiserConfig(lr=0.01)


@pytest.mark.parametrize("steps", [2, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(("mode", "online"), MODES, ids=["paper", "openmixup"])
def test_each_step_is_that_of_the_pipeline(
    tmp_path: Path, mode: str, online: dict[str, Any], world_size: int, steps: int
):
    """From the state before each of 20 steps, masks and losses are those of the in-process pipeline within 1e-5."""
    method = pipeline(mode, **online)
    update, settings = updates(method, lr=0.1), settings_of(method, lr=0.1, world_size=world_size)

    with training_server(tmp_path, max_sessions=steps) as server:
        for step in range(steps):
            key, items = SessionKey.draw("step"), items_of(step, world_size, mode)
            write_state(tmp_path, key, settings, method, update, step)
            with owned(server, settings, key) as owner:
                answers = owner.ask(items)
                losses = owner.learned(step)
            masks, figures = step_in_process(method, update, items)

            for item, answer, expected in zip(items, answers, masks, strict=True):
                torch.testing.assert_close(masks_of(settings, item, answer), expected, rtol=0, atol=1e-5)
            assert [losses.classification, losses.lam_error, losses.spread] == pytest.approx(figures, abs=1e-5)


@pytest.mark.parametrize("steps", [4, pytest.param(STEPS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("mode", "online"), MODES, ids=["paper", "openmixup"])
def test_a_free_run_stays_close(tmp_path: Path, mode: str, online: dict[str, Any], steps: int):
    """In lock-step with float32 weights after every step, masks stay within 2e-3 of the pipeline's for 20 steps."""
    online |= {"momentum": 0.9, "momentum_end": 0.99}
    here, method = pipeline(mode, **online), pipeline(mode, **online)
    update, settings = updates(here), settings_of(here)
    students = Update.of(method.parts(CLASSIFIERS, MIXERS)[:1], settings.length)

    with training_server(tmp_path) as server, owned(server, settings) as owner:
        owner.open()
        owner.send(0, method.classifier)
        for step in range(steps):
            (item,) = items_of(step, 1, mode)
            (answer,) = owner.ask([item])
            _learn(method, students, item, answer.logits, settings)
            owner.send(step + 1, method.classifier)
            (masks,), _ = step_in_process(here, update, [item])

            torch.testing.assert_close(masks_of(settings, item, answer), masks, rtol=0, atol=2e-3)
        assert owner.learned(steps - 1).step == steps - 1


@pytest.mark.parametrize("every", [1, 2, 10])
def test_weights_every_few_steps_follow_the_corrected_schedule(every: int):
    """With K steps between weights the copy keeps the product of the momenta of those steps."""
    method = pipeline("paper", momentum=0.8, momentum_end=0.9, momentum_constant_share=0.0)
    settings = settings_of(method, weights_every=every)
    before, after = (floating_state(pipeline("paper", seed=seed).classifier) for seed in (0, 1))
    after = {name: value + 0.1 for name, value in after.items()}
    learner = Learner.build(settings, torch.device("cpu"))

    learner.start_from(before)
    learner.catch_up(after, range(3, 3 + every))

    momenta = [ema_momentum(step, TOTAL_STEPS, start=0.8, end=0.9, constant_share=0) for step in range(3, 3 + every)]
    kept = math.prod(momenta)
    for name, value in floating_state(learner.mixer.classifier).items():
        torch.testing.assert_close(value, kept * before[name] + (1 - kept) * after[name])


def test_a_gradient_that_is_not_finite_teaches_nothing():
    """A step whose gradient is no number leaves the block as it was, and the next one learns."""
    method = pipeline("paper")
    learner, call = Learner.build(settings_of(method), torch.device("cpu")), call_of(items_of(0, 1, "paper")[0])
    learner.start_from(floating_state(method.classifier))
    before = [parameter.detach().clone() for parameter in learner.mixer.block.parameters()]
    learner.learn(learner.mix(call, 0))
    spoiled = next(parameter for parameter in learner.mixer.block.parameters() if parameter.grad is not None)
    spoiled.grad = torch.full_like(spoiled, torch.nan)

    assert not learner.finish_step(0, 1)

    assert all(map(torch.equal, before, learner.mixer.block.parameters()))
    learner.learn(learner.mix(call, 0))
    assert learner.finish_step(1, 1)
    assert not all(map(torch.equal, before, learner.mixer.block.parameters()))


def test_a_batch_of_another_size_is_mixed_too(tmp_path: Path):
    """The last batch of an epoch may be smaller."""
    method = pipeline("paper")
    settings = settings_of(method)
    item = planned(0, size=BATCH // 2)

    with training_server(tmp_path) as server, owned(server, settings) as owner:
        owner.open()
        owner.send(0, method.classifier)
        answer = owner.rank(0).submit(call_of(item), WAIT_S).result(WAIT_S)

    assert len(answer.logits) == BATCH // 2


def _learn(method: CoTraining, students: Update, item: Planned, logits: Tensor, settings: SessionSettings) -> None:
    images, spec = as_unit_float(item.images), settings.mixer
    mixed = compose_students(images, item.labels, item.plans, logits, spec.rendering, mode=spec.mode)
    students.backward(classify(method.classifier, mixed, images, method._objective))
    students.step()
