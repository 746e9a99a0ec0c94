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
from trainer.optimise import RunLength
from trainer.planning import Planning
from trainer.prefetch import BatchMixing
from trainer.update import Update
from trainer.world import World


def build_method(config: TrainConfig, length: RunLength, device: torch.device) -> tuple[Method, Update]:
    """Build what is trained, on its device, and the optimisers of its parts.

    Raises:
        ConfigError: if there is no such backbone or stage, or settings contradict each other.
    """
    is_online = config.mixing.policy == "online"
    clean_head = is_online and needs_clean_head(config.online, config.objective)
    classifier = build_classifier(config.model, config.data.num_classes, seed=config.seed, clean_head=clean_head)
    if is_online:
        method = CoTraining.build(
            classifier,
            config.online.mixer_spec(config.model, config.data.image_size),
            config.online,
            config.objective,
            seed=config.seed,
            total_steps=length.total_steps,
        ).to(device)
        parts = method.parts(config.optimiser, config.online.mixer_optimiser)
    else:
        method = ClassifyMixed(classifier, config.objective).to(device)
        parts = [(config.optimiser, classifier)]
    scales_loss = config.precision == "fp16"
    return method, Update.of(parts, length, device=device.type, scales_loss=scales_loss)


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
            micro_batches=config.accumulate,
            device=world.device,
        )
        return
    with open_mixing(
        config.mixing,
        seed=config.seed,
        image_size=config.data.image_size,
        batch_size=config.data.global_batch // (world.size * config.accumulate),
        world=world,
        metrics=metrics,
        classifier=method.classifier,
    ) as mixing:
        yield mixing


def _drawing(config: TrainConfig) -> OnlineConfig:
    """Let the alpha that is set for any policy hold for the online one too."""
    return replace(config.online, alpha=config.mixing.alpha or config.online.alpha)
