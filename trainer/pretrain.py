"""Pretrain a SAMix mixer beside a classifier and write it as an artefact."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

import torch

from samix.mixing.artefact import check_artefact_path
from samix.mixing.plan import derive_seed
from services.cli import program
from services.config import parse_recipe, write_resolved
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.shards.config import DataConfig
from services.shards.index import open_shards
from services.shards.loader import TrainLoader, train_loader
from services.shards.reader import count_classes
from trainer.export import Origin, export_mixer, first_pictures
from trainer.loop import train_epoch
from trainer.methods.config import needs_clean_head
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.model import build_classifier
from trainer.optimise import Update
from trainer.planning import Planning
from trainer.pretrain_config import PRETRAIN_RECIPES, PretrainConfig
from trainer.report import RunLog, average_figures, follow
from trainer.world import World, choose_device

log = logging.getLogger(__name__)


@program
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `samix pretrain RECIPE --data GLOB --out FILE`."""
    recipe, config = parse_recipe(PRETRAIN_RECIPES, "pretrain", argv)
    setup_logging(config.log_format)
    tune_malloc()
    pretrain(recipe, config)
    return 0


def pretrain(recipe: str, config: PretrainConfig) -> None:
    """Train classifier and mixer together, then write the mixer.

    Raises:
        InputError: for whatever is wrong with config or data.
    """
    check_artefact_path(config.out)
    world = World(rank=0, local_rank=0, size=1, device=choose_device(config.device))
    num_classes = config.num_classes or count_classes(open_shards(config.data))
    data = DataConfig(**asdict(config.loading), train=config.data, val=config.data, num_classes=num_classes)
    with train_loader(data, seed=config.seed) as loader:
        method = _co_training(config, num_classes, config.epochs * loader.steps_per_epoch).to(world.device)
        update = method.build_update(config.optimiser, config.online.mixer_optimiser)
        planning = Planning(
            config=config.online,
            run_seed=config.seed,
            rank=0,
            steps_per_epoch=loader.steps_per_epoch,
            device=world.device,
        )
        for epoch in range(config.epochs):
            _epoch(config, method, update, planning, loader, epoch, world)
        pictures = first_pictures(loader)
    write_resolved(config, config.out.with_suffix(".config.json"))
    origin = Origin(recipe=recipe, data=config.data, epochs=config.epochs, seed=config.seed)
    export_mixer(config.out, method.online.freeze(config.mixer_name), pictures, origin)


def _co_training(config: PretrainConfig, num_classes: int, total_steps: int) -> CoTraining:
    clean_head = needs_clean_head(config.online, config.objective)
    classifier = build_classifier(config.model, num_classes, seed=config.seed, clean_head=clean_head)
    spec = config.online.mixer_spec(config.model, config.loading.image_size)
    return CoTraining.build(
        classifier, spec, config.online, config.objective, seed=config.seed, total_steps=total_steps
    )


def _epoch(
    config: PretrainConfig,
    method: CoTraining,
    update: Update,
    planning: Planning,
    loader: TrainLoader,
    epoch: int,
    world: World,
) -> None:
    started = time.monotonic()
    torch.manual_seed(derive_seed(config.seed, "dropout", epoch))  # dropout draws from torch's global generator
    loader.set_epoch(epoch)
    steps = train_epoch(
        method, method, planning.epoch(epoch, loader), update, TrainerMetrics(0), precision=config.precision
    )
    shown = list(
        follow(
            steps,
            epoch=epoch,
            total=loader.steps_per_epoch,
            every=config.log_every,
            run_log=RunLog(config.out.parent, is_writer=False),
            world=world,
        )
    )
    figures = average_figures(shown)
    row = {
        "epoch": epoch + 1,
        "of": config.epochs,
        "loss": round(fmean(step.loss for step in shown), 4),
        **figures,
        "gamma": round(method.online.block.gamma.item(), 3),
        "seconds": round(time.monotonic() - started, 1),
    }
    log.info("epoch", extra=row)
    method.epoch_done(figures, progress=(epoch + 1) / config.epochs)
