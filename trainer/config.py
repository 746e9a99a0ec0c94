"""The whole configuration of a training run; each part stands beside the code it configures."""

from dataclasses import dataclass, field
from pathlib import Path

from samix.errors import ConfigError
from services.logs import LogFormat
from services.shards.config import DataConfig
from trainer.loop import Precision
from trainer.methods.config import CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.metrics import MetricsConfig
from trainer.mixing import MixingConfig
from trainer.model import ModelConfig
from trainer.optimise import OptimiserConfig
from trainer.world import DeviceKind


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a classifier on mixed batches."""

    data: DataConfig
    """Images and how they are loaded."""
    out: Path = Path("runs/train")
    """Folder for checkpoint, logs, curves and summary."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    """How batches are mixed."""
    online: CoTrainingConfig = field(default_factory=CoTrainingConfig)
    """The mixer of policy `online`, which learns beside the classifier."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the classifier minimises."""
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    """How weights are updated."""
    precision: Precision = "fp32"
    """bf16 runs the networks under autocast; weights, losses and masks stay float32."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """The page for Prometheus."""
    resume: bool = False
    """Go on after the last epoch that was saved in --out, with the same recipe and flags."""
    epochs: int = 10
    """Times the training set is seen."""
    seed: int = 0
    """Of everything that is drawn: weights, order, augmentation, plans."""
    device: DeviceKind = "auto"
    """Where to train; `auto` takes this rank's GPU where there is one."""
    log_every: int = 20
    """Steps from one log line to the next."""
    log_format: LogFormat = "text"
    """Of the log on stderr."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.log_every < 1:
            raise ConfigError(f"epochs and log_every must be at least 1, got {self.epochs} and {self.log_every}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
