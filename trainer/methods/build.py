"""From a run's config to the method that trains it, and to what prepares that method's batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from samix.mixing.online_config import OnlineConfig
from trainer.config import TrainConfig
from trainer.methods.config import needs_clean_head
from trainer.methods.method import Method
from trainer.methods.mixed import ClassifyMixed
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.mixing import open_mixing
from trainer.model import build_classifier
from trainer.optimise import Update
from trainer.planning import Planning
from trainer.prefetch import BatchMixing
from trainer.world import World


def build_method(config: TrainConfig, *, total_steps: int, device: torch.device) -> tuple[Method, Update]:
    """Build what is trained, on its device, and the optimisers of its parts.

    Raises:
        ConfigError: if there is no such backbone or stage, or settings contradict each other.
    """
    is_online = config.mixing.policy == "online"
    clean_head = is_online and needs_clean_head(config.online, config.objective)
    classifier = build_classifier(config.model, config.data.num_classes, seed=config.seed, clean_head=clean_head)
    if not is_online:
        method = ClassifyMixed(classifier, config.objective).to(device)
        return method, Update.of([(config.optimiser, method.parameters())], total_steps)
    co_training = CoTraining.build(
        classifier,
        config.online.mixer_spec(config.model, config.data.image_size),
        config.online,
        config.objective,
        seed=config.seed,
        total_steps=total_steps,
    ).to(device)
    return co_training, co_training.build_update(config.optimiser, config.online.mixer_optimiser)


@contextmanager
def open_batches(
    config: TrainConfig, method: Method, world: World, metrics: TrainerMetrics, *, steps_per_epoch: int
) -> Iterator[BatchMixing[Any]]:
    """Make what prepares this rank's batches for `method`, and close it at the end.

    Raises:
        ConfigError, ArtefactError: see `open_mixing`.
    """
    if config.mixing.policy == "online":
        yield Planning(
            config=_drawing(config),
            run_seed=config.seed,
            rank=world.rank,
            steps_per_epoch=steps_per_epoch,
            device=world.device,
        )
        return
    with open_mixing(
        config.mixing,
        seed=config.seed,
        image_size=config.data.image_size,
        world=world,
        metrics=metrics,
        classifier=method.classifier,
    ) as mixing:
        yield mixing


def _drawing(config: TrainConfig) -> OnlineConfig:
    """Let the alpha that is set for any policy hold for the online one too."""
    return replace(config.online, alpha=config.mixing.alpha or config.online.alpha)
