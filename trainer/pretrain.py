"""Pretrain a SAMix mixer beside a classifier and write it as an artefact."""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tqdm import tqdm

from samix.errors import ConfigError
from samix.mixing.artefact import check_artefact_path, save_artefact
from samix.mixing.online import MixerLoss
from samix.mixing.spec import MixerSpec
from services.cli import program
from services.config import parse_recipe, write_resolved
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.shards.config import DataConfig
from services.shards.index import open_shards
from services.shards.loader import TrainLoader, train_loader
from services.shards.reader import count_classes
from trainer.cotraining import CoTraining
from trainer.pretrain_config import PRETRAIN_RECIPES, PretrainConfig
from trainer.provenance import software
from trainer.quality import mask_quality

log = logging.getLogger(__name__)

TRIVIAL_SPREAD = 0.02
"""Masks whose spatial standard deviation stays below this are a constant blend: Mixup at the price of a network."""


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
    _check_image_size(config.mixer, config.loading.image_size)
    num_classes = config.num_classes or count_classes(open_shards(config.data))
    data = DataConfig(**asdict(config.loading), train=config.data, val=config.data, num_classes=num_classes)
    with train_loader(data, seed=config.seed) as loader:
        training = CoTraining.prepare(config, num_classes, config.epochs * loader.steps_per_epoch)
        for epoch in range(config.epochs):
            _epoch(config, training, loader, epoch)
        sample = next(iter(loader)).images
    mixer = training.online.freeze(config.mixer_name)
    quality = mask_quality(mixer, sample, seed=config.seed)
    figures = {"lam_error": f"{quality.mean_error:.4f}", "spread": f"{quality.mean_spread:.4f}"}
    settings = {"epochs": str(config.epochs), "seed": str(config.seed)}
    write_resolved(config, config.out.with_suffix(".config.json"))
    provenance = {"data": config.data.rpartition("/")[2], "recipe": recipe, **settings, **figures, **software()}
    save_artefact(config.out, mixer, provenance)
    log.info("artefact", extra={"path": str(config.out), "mixer": mixer.name, "version": mixer.version, **figures})


def _check_image_size(spec: MixerSpec, image_size: int) -> None:
    if spec.image_size != image_size:  # the artefact would tell another size than it was trained on
        raise ConfigError(
            f"mixer.image_size is {spec.image_size}, loading.image_size is {image_size}; give both the same value"
        )
    spec.check_size(image_size, image_size)


def _epoch(config: PretrainConfig, training: CoTraining, loader: TrainLoader, epoch: int) -> None:
    loader.set_epoch(epoch)
    started = time.monotonic()
    first = epoch * loader.steps_per_epoch
    means = _Means()
    on_terminal = sys.stderr.isatty()
    bar = tqdm(loader, total=loader.steps_per_epoch, desc=f"epoch {epoch + 1}", disable=not on_terminal, leave=False)
    for number, batch in enumerate(bar, start=1):
        means.add(*training.step(batch, first + number - 1))
        if number % config.log_every == 0 and not on_terminal:
            log.info("step", extra={"epoch": epoch + 1, "step": number, "of": loader.steps_per_epoch, **means.row()})
    gamma = round(training.online.block.gamma.item(), 3)
    seconds = round(time.monotonic() - started, 1)
    log.info(
        "epoch", extra={"epoch": epoch + 1, "of": config.epochs, **means.row(), "gamma": gamma, "seconds": seconds}
    )
    if means.spread < TRIVIAL_SPREAD and epoch >= config.epochs // 2:
        log.warning(
            "masks_still_trivial",
            extra={"spread": round(means.spread, 4), "cure": "train longer, or lower --online.momentum"},
        )


@dataclass
class _Means:
    """Averages of an epoch so far."""

    steps: int = 0
    loss: float = 0.0
    mixer_loss: float = 0.0
    lam_error: float = 0.0
    spread: float = 0.0

    def add(self, student_loss: float, mixer: MixerLoss) -> None:
        self.steps += 1
        for name, value in (
            ("loss", student_loss),
            ("mixer_loss", mixer.classification),
            ("lam_error", mixer.lam_error),
            ("spread", mixer.spread),
        ):
            setattr(self, name, getattr(self, name) + (value - getattr(self, name)) / self.steps)

    def row(self) -> dict[str, float]:
        return {name: round(getattr(self, name), 4) for name in ("loss", "mixer_loss", "lam_error", "spread")}
