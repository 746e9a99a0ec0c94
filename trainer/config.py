"""The whole configuration of a training run; each part stands beside the code it configures."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from samix.errors import ConfigError
from samix.mixing.optimise import OptimiserConfig
from services.logs import LogFormat
from services.shards.config import DataConfig
from services.tracing import TracingConfig
from trainer.checkpoint import CheckpointConfig
from trainer.loop import Precision
from trainer.methods.config import CoTrainingConfig
from trainer.methods.objective import ObjectiveConfig
from trainer.metrics import MetricsConfig
from trainer.mixing import MixingConfig
from trainer.model import ModelConfig
from trainer.world import DeviceKind


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a classifier on mixed batches."""

    data: DataConfig
    """Images and how they are loaded."""
    out: Path = Path("runs/train")
    """Folder for checkpoints, logs, curves and summary; on several machines a disk that they share."""
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
    """bf16 and fp16 run the networks under autocast; weights, losses and masks stay float32."""
    accumulate: int = 1
    """Parts in which a rank goes through its share of the global batch, for GPUs that it does not fit into; each part
    is mixed in itself, and batch norm sees one at a time."""
    ema_decay: float = 0.0
    """Share of the moving average of the weights that stays at each step, such as 0.9999; the average is then what is
    evaluated. 0 keeps none."""
    sync_bn: bool = False
    """Let batch norm see the batches of all ranks; on GPUs only."""
    compile: bool = False
    """Compile the network by torch.compile: minutes at the start, then faster on GPUs."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """The page for Prometheus."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """When the state is saved."""
    resume: Literal["no", "yes", "auto"] = "no"
    """`yes` goes on from the newest checkpoint in --out, with the same recipe and flags, on any number of ranks; `auto`
    does so where there is one, and else starts. Ranks that torchrun restarts always go on."""
    overwrite: bool = False
    """Start anew in a folder that holds checkpoints of an earlier run, and delete them."""
    eval: Path | None = None
    """Train nothing: evaluate this checkpoint on --data.val and write evaluation.json, a table and a picture."""
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
    tracing: TracingConfig = field(default_factory=TracingConfig)
    """Spans for OpenTelemetry."""
    tensorboard: bool = False
    """Write what log.jsonl holds for TensorBoard too."""
    trace_samples: bool = False
    """Note the samples of each step in samples-rank*.jsonl."""

    def __post_init__(self) -> None:
        for name in ("epochs", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"seed must not be negative, got {self.seed}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}; 0 keeps no average")
        if self.optimiser.warmup_epochs >= self.epochs:
            warmup = self.optimiser.warmup_epochs
            raise ConfigError(
                f"a warm-up of {warmup:g} epochs leaves nothing of {self.epochs} to train at its rate; raise --epochs "
                "or lower --optimiser.warmup-epochs"
            )
        if self.overwrite and self.resume != "no":
            raise ConfigError(f"--overwrite starts anew and --resume {self.resume} goes on; give one of them")
        if self.eval is not None and (self.overwrite or self.resume != "no"):
            flag = "--overwrite" if self.overwrite else f"--resume {self.resume}"
            raise ConfigError(f"--eval trains nothing, so there is nothing to go on with or start; leave out {flag}")
