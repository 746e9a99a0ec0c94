"""What can be said about co-training on a server."""

from dataclasses import dataclass
from typing import Literal

from samix.cotraining.settings import MAX_STALENESS
from samix.cotraining.wire import LogitKind
from samix.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class CoTrainingSessionConfig:
    """How ranks and server keep in step, for policy `remote-online`."""

    weights_every: int = 10
    """Steps after which rank 0 sends the classifier's weights, which the server's momentum copy follows."""
    weights: Literal["bf16", "fp32"] = "bf16"
    """How they travel, the first ones excepted; bf16 is half the bytes."""
    max_staleness: int = 1
    """Steps by which the mixer may lag behind the batch that it mixes. 0 waits for each step to be learned before the
    next is mixed, as training in one process does; 1 lets the server learn while the ranks train."""
    logits: LogitKind = "float16"
    """How masks travel."""

    def __post_init__(self) -> None:
        if self.weights_every < 1:
            raise ConfigError(f"mixing.session.weights_every must be at least 1, got {self.weights_every}")
        if not 0 <= self.max_staleness <= MAX_STALENESS:
            raise ConfigError(f"mixing.session.max_staleness must lie in 0..{MAX_STALENESS}, got {self.max_staleness}")
