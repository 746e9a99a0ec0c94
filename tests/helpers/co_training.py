"""Co-training on a network of milliseconds: the method, its batches and its optimisers."""

from dataclasses import replace
from typing import Any

import torch
from learning import labels_of, lively_classifier, random_images

from samix.mixing.block import BlockSpec
from samix.mixing.online_config import OnlineConfig, draw_step_plans
from samix.mixing.optimise import OptimiserConfig, RunLength
from samix.mixing.plan import generator_for
from samix.mixing.presets import tiny_spec
from samix.mixing.update import Update
from trainer.methods.objective import ObjectiveConfig
from trainer.methods.online import CoTraining
from trainer.planning import Planned

STEPS = 4
"""Of a whole run."""
CLEAN = {"clean_weight": 1.0}
"""Settings for clean images beside the mixed ones."""
OPENMIXUP = {"mode": "openmixup", "per_sample_lam": False, "clean_weight": 1.0, "mask_schedule": "constant"}
"""Settings of the public reference's way."""


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
    """Make the optimisers of classifier and block."""
    parts = method.parts(OptimiserConfig(lr=0.05), OptimiserConfig(kind="adamw", lr=0.01))
    return Update.of(parts, RunLength(steps_per_epoch=STEPS, epochs=1))
