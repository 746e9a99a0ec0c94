"""Configuration and recipes of `samix pretrain`."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from samix.errors import ConfigError
from samix.mixing.online import OnlineConfig
from samix.mixing.presets import CIFAR_MEAN, CIFAR_STD, HALF, TINY_RESNET, samix_spec
from samix.mixing.spec import MixerSpec
from services.logs import LogFormat
from services.shards.config import LoadingConfig
from trainer.optimise import OptimiserConfig
from trainer.world import DeviceKind


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Pretrain a mixer in one process."""

    data: str
    """Shards to train on: a path, a glob or a pattern like train-{000000..000003}.tar (quote it)."""
    out: Path
    """The artefact to write, ending in .safetensors."""
    mixer: MixerSpec
    """Settings of the mixer; its backbone is also the classifier's."""
    loading: LoadingConfig
    """How images are loaded."""
    name: str = ""
    """Name a server hosts the mixer by; empty takes the file's name."""
    num_classes: int = 0
    """Labels run from 0 to this minus 1; 0 reads the labels of all shards to find out."""
    online: OnlineConfig = field(default_factory=OnlineConfig)
    """How the mixer learns."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How the classifier learns."""
    mixer_lr: float = 0.01
    """Learning rate of the mixing block (AdamW), falling with a cosine to a tenth. SGD at the published 0.1 stays near
    the constant mask it starts from for thousands of steps."""
    clean_weight: float = 0.0
    """Weight of the cross-entropy on clean images beside the mixed one. The reference uses 1; 0 saves the classifier a
    forward and a backward."""
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
        if not 0 < self.mixer_lr < math.inf or not 0 <= self.clean_weight < math.inf:
            raise ConfigError(
                f"mixer_lr must be positive and clean_weight not negative, got {self.mixer_lr} and {self.clean_weight}"
            )

    @property
    def mixer_name(self) -> str:
        """The name that is used."""
        return self.name or self.out.stem


# The momentum copy of a short run must follow quickly, or the mixer learns from a network near its random start.
_QUICK = OnlineConfig(momentum=0.95, momentum_end=0.99, mask_weight=1.0)

_DIGITS = PretrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    mixer=samix_spec(TINY_RESNET, mean=HALF, std=HALF, stage=1, image_size=16),
    loading=LoadingConfig(image_size=16, global_batch=64, flip=False, padding=2, num_workers=0),
    online=_QUICK,
)
_CIFAR = PretrainConfig(
    data=tyro.MISSING,
    out=tyro.MISSING,
    mixer=samix_spec(TINY_RESNET, mean=CIFAR_MEAN, std=CIFAR_STD, image_size=32),
    loading=LoadingConfig(image_size=32, global_batch=100, num_workers=1),
    online=_QUICK,
    optimiser=OptimiserConfig(weight_decay=5e-4),
    epochs=8,
)

PRETRAIN_RECIPES: dict[str, tuple[str, PretrainConfig]] = {
    "digits_samix_cpu": ("Handwritten digits at 16 px, 8 x 8 masks: under a minute on two cores.", _DIGITS),
    "cifar_samix_cpu": ("CIFAR at 32 px, ResNet-10 of a quarter width, 8 x 8 masks: for a CPU.", _CIFAR),
}
