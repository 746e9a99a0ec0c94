"""From a run's config to the method that trains it, and to what prepares that method's batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from samix.mixing.optimise import RunLength
from samix.mixing.update import Update
from trainer.config import TrainConfig
from trainer.methods.config import CoTrainingConfig, needs_clean_head
from trainer.methods.followed import ClassifyFollowed
from trainer.methods.method import Method
from trainer.methods.mixed import ClassifyMixed
from trainer.methods.objective import ObjectiveConfig
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.mixing import open_mixing
from trainer.model import ModelConfig, build_classifier
from trainer.planning import Planning
from trainer.prefetch import BatchMixing
from trainer.sessions.build import build_followed, open_session_mixing
from trainer.world import World


def build_method(config: TrainConfig, length: RunLength, device: torch.device) -> tuple[Method, Update]:
    """Build what is trained, on its device, and the optimisers of its parts.

    Raises:
        ConfigError: if there is no such backbone or stage, or settings contradict each other.
    """
    num_classes = config.data.num_classes
    if config.mixing.policy == "online":
        method = build_co_training(
            config.model,
            config.online,
            config.objective,
            num_classes=num_classes,
            image_size=config.data.image_size,
            seed=config.seed,
            total_steps=length.total_steps,
        ).to(device)
        parts = method.parts(config.optimiser, config.online.mixer_optimiser)
    elif config.mixing.policy == "remote-online":
        method = build_followed(config).to(device)
        parts = [(config.optimiser, method.classifier)]
    else:
        classifier = build_classifier(config.model, num_classes, seed=config.seed)
        method = ClassifyMixed(classifier, config.objective).to(device)
        parts = [(config.optimiser, classifier)]
    scales_loss = config.precision == "fp16"
    return method, Update.of(parts, length, device=device.type, scales_loss=scales_loss)


def build_co_training(
    model: ModelConfig,
    online: CoTrainingConfig,
    objective: ObjectiveConfig,
    *,
    num_classes: int,
    image_size: int,
    seed: int,
    total_steps: int,
) -> CoTraining:
    """Build a classifier and the mixer that learns beside it.

    Args:
        model: the classifier.
        online: the mixer, and how it learns.
        objective: the classifier's loss.
        num_classes: of the classifier.
        image_size: side of the images, pixels.
        seed: of all weights.
        total_steps: steps of the whole run.

    Raises:
        ConfigError: if there is no such backbone or stage, or settings contradict each other.
        BadBatch: if the mixer would not take images of this size.
    """
    classifier = build_classifier(model, num_classes, seed=seed, clean_head=needs_clean_head(online, objective))
    spec = online.mixer_spec(model, image_size)
    return CoTraining.build(classifier, spec, online, objective, seed=seed, total_steps=total_steps)


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
    if config.mixing.policy == "remote-online":
        assert isinstance(method, ClassifyFollowed)
        drawing = _drawing(config)
        with open_session_mixing(config, drawing, method, world, metrics, steps_per_epoch=steps_per_epoch) as session:
            yield session
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


def _drawing(config: TrainConfig) -> CoTrainingConfig:
    """Let the alpha that is set for any policy hold for the online one too."""
    return replace(config.online, alpha=config.mixing.alpha or config.online.alpha)
