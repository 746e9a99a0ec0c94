"""Pretrain a SAMix mixer beside a classifier and write it as an artefact."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from samix.mixing.artefact import check_artefact_path
from samix.mixing.optimise import RunLength
from samix.mixing.plan import derive_seed
from samix.mixing.update import Update
from services.cli import program
from services.config import parse_recipe, write_resolved
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.shards.config import DataConfig
from services.shards.index import open_shards
from services.shards.loader import TrainLoader, train_loader
from services.shards.reader import count_classes
from trainer.export import Origin, export_mixer, first_pictures
from trainer.loop import Step, Stepping, train_epoch
from trainer.methods.build import build_co_training
from trainer.methods.online import CoTraining
from trainer.metrics import TrainerMetrics
from trainer.planning import Planning
from trainer.pretrain_config import PRETRAIN_RECIPES, PretrainConfig
from trainer.progress import follow
from trainer.report import RunLog
from trainer.tally import EpochTally
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
    num_classes = config.num_classes or count_classes(
        open_shards(config.data, cache=config.loading.shard_cache(), index=config.loading.index)
    )
    data = DataConfig(**asdict(config.loading), train=config.data, val=config.data, num_classes=num_classes)
    with train_loader(data, seed=config.seed) as loader:
        length = RunLength(steps_per_epoch=loader.steps_per_epoch, epochs=config.epochs)
        method = build_co_training(
            config.model,
            config.online,
            config.objective,
            num_classes=num_classes,
            image_size=config.loading.image_size,
            seed=config.seed,
            total_steps=length.total_steps,
        ).to(world.device)
        parts = method.parts(config.optimiser, config.online.mixer_optimiser)
        scales_loss = config.precision == "fp16"
        pretraining = _Pretraining(
            config=config,
            world=world,
            loader=loader,
            method=method,
            update=Update.of(parts, length, device=world.device.type, scales_loss=scales_loss),
            metrics=TrainerMetrics(0),
            run_log=RunLog(config.out.parent, is_writer=False),
        )
        for epoch in range(config.epochs):
            pretraining.do_epoch(epoch)
        pictures = first_pictures(loader)
    write_resolved(config, config.out.with_suffix(".config.json"))
    origin = Origin(recipe=recipe, data=config.data, epochs=config.epochs, seed=config.seed)
    export_mixer(config.out, method.online.freeze(config.mixer_name), pictures, origin)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pretraining:
    """The parts of a run."""

    config: PretrainConfig
    world: World
    loader: TrainLoader
    method: CoTraining
    update: Update
    metrics: TrainerMetrics
    run_log: RunLog

    def do_epoch(self, epoch: int) -> None:
        """Train for one epoch and log what came of it."""
        started = time.monotonic()
        tally = EpochTally()
        for _ in self._steps(epoch, tally):
            pass
        figures = tally.whole.figure_averages()
        row = {
            "epoch": epoch + 1,
            "of": self.config.epochs,
            "loss": tally.whole.averages()["loss"],
            **figures,
            "gamma": round(self.method.online.block.gamma.item(), 3),
            "seconds": round(time.monotonic() - started, 1),
        }
        log.info("epoch", extra=row)
        self.method.epoch_done(figures, progress=(epoch + 1) / self.config.epochs)

    def _steps(self, epoch: int, tally: EpochTally) -> Iterator[Step]:
        self.loader.set_epoch(epoch)
        planning = Planning(
            config=self.config.online,
            run_seed=self.config.seed,
            rank=0,
            steps_per_epoch=self.loader.steps_per_epoch,
            device=self.world.device,
        )
        steps = train_epoch(
            self.method,
            self.method,
            planning.epoch(epoch, self.loader),
            self.update,
            self.metrics,
            stepping=Stepping(precision=self.config.precision),
            seeds=lambda step: derive_seed(self.config.seed, "dropout", epoch, step, 0),
        )
        return follow(
            steps,
            epoch=epoch,
            total=self.loader.steps_per_epoch,
            every=self.config.log_every,
            run_log=self.run_log,
            world=self.world,
            tally=tally,
            metrics=self.metrics,
            remaining_epochs=self.config.epochs - epoch - 1,
        )
