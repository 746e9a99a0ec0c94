"""`samix train RECIPE --eval CHECKPOINT`: what a checkpoint is worth, and nothing trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from samix.errors import ConfigError
from services.shards.loader import eval_loader
from trainer.checkpoint import load_checkpoint
from trainer.config import TrainConfig
from trainer.eval_report import evaluate_run
from trainer.model import build_classifier
from trainer.world import World


def evaluate_checkpoint(recipe: str, config: TrainConfig, path: Path, world: World) -> None:
    """Evaluate the weights a run would evaluate, the averaged ones where it kept an average; every rank calls it.

    Raises:
        InputError: if checkpoint or shards cannot be used, or the checkpoint is of another model.
    """
    state = load_checkpoint(path)
    weights = state["averaged"] or state["model"]
    classifier = _build(config, weights, path, state["recipe"]).to(world.device)
    pin = world.device.type == "cuda"
    with eval_loader(config.data, rank=world.rank, world_size=world.size, pin_memory=pin) as batches:
        evaluate_run(
            classifier,
            batches,
            world,
            classifier,
            config.out,
            num_classes=config.data.num_classes,
            classes=batches.classes,
            about={"recipe": recipe, "checkpoint": str(path), "data": config.data.val},
        )


def _build(config: TrainConfig, weights: dict[str, Any], path: Path, recipe: str) -> nn.Module:
    has_clean_head = any(name.startswith("head_one.") for name in weights)
    model = replace(config.model, weights="")  # all of them are in the checkpoint
    classifier = build_classifier(model, config.data.num_classes, seed=config.seed, clean_head=has_clean_head)
    try:
        classifier.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[:2])
        raise ConfigError(
            f"{path} is of another model ({reason}); evaluate it with the recipe it had, {recipe}, and its flags"
        ) from error
    return classifier
