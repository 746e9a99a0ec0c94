"""Configuration and recipes of `samix pretrain`."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from samix.errors import ConfigError
from samix.mixing.optimise import OptimiserConfig
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, HALF, TINY_RESNET
from services.logs import LogFormat
from services.shards.config import LoadingConfig
from trainer.loop import Precision
from trainer.methods.config import QUICK, QUICKEST, CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.model import ModelConfig
from trainer.world import DeviceKind


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a mixer in one process."""

    data: str
    """Shards to train on: a path, a glob or a pattern like train-{000000..000003}.tar (quote it)."""
    out: Path
    """The artefact to write, ending in .safetensors."""
    loading: LoadingConfig
    """How images are loaded."""
    model: ModelConfig
    """The classifier, from which the mixer's encoder is cut."""
    name: str = ""
    """Name a server hosts the mixer by; empty takes the file's name."""
    num_classes: int = 0
    """Labels run from 0 to this minus 1; 0 reads the labels of all shards to find out."""
    online: CoTrainingConfig = field(default_factory=CoTrainingConfig)
    """The mixer and how it learns."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the classifier minimises."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How the classifier is updated."""
    precision: Precision = "fp32"
    """bf16 runs the networks under autocast; weights, losses and masks stay float32."""
    epochs: int = 15
    """Times the training set is seen."""
    seed: int = 0
    """Of everything that is drawn."""
    device: DeviceKind = "auto"
    """Where to train."""
    log_every: int = 20
    """Steps from one log line to the next."""
    log_format: LogFormat = "text"
    """Of the log on stderr."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.log_every < 1:
            raise ConfigError(f"epochs and log_every must be at least 1, got {self.epochs} and {self.log_every}")
        if self.seed < 0 or self.num_classes < 0:
            raise ConfigError(f"seed and num_classes must not be negative, got {self.seed} and {self.num_classes}")

    @property
    def mixer_name(self) -> str:
        """The name that is used."""
        return self.name or self.out.stem


_DIGITS = PretrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    model=ModelConfig(backbone=TINY_RESNET, mean=HALF, std=HALF),
    loading=LoadingConfig(image_size=16, global_batch=64, flip=False, padding=2, num_workers=0),
    online=QUICKEST,
)
_CIFAR = PretrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    model=ModelConfig(backbone=TINY_RESNET, mean=CIFAR_MEAN, std=CIFAR_STD),
    loading=LoadingConfig(image_size=32, global_batch=100, num_workers=1),
    online=QUICK,
    optimiser=OptimiserConfig(weight_decay=5e-4),
    epochs=8,
)

PRETRAIN_RECIPES: dict[str, tuple[str, PretrainConfig]] = {
    "digits_samix_cpu": ("Handwritten digits at 16 px, 8 x 8 masks: under a minute on two cores.", _DIGITS),
    "cifar_samix_cpu": ("CIFAR at 32 px, ResNet-10 of a quarter width, 8 x 8 masks: for a CPU.", _CIFAR),
}
