"""What a co-training session is: everything that trainers and server must agree on."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from samix.errors import ConfigError
from samix.mixing.classifier import Classifier
from samix.mixing.fields import read_fields
from samix.mixing.online_config import OnlineConfig
from samix.mixing.optimise import OptimiserConfig, RunLength
from samix.mixing.spec import MixerSpec

MAX_STALENESS = 64
"""Most steps that a mixer may lag behind; each costs memory for a batch of every rank."""
_MOST_STEPS = 4_000_000
"""Of a run; schedules that compound keep a number for each, 32 MB in all."""
_MOST = {
    "num_classes": 1 << 20,
    "world_size": 1024,
    "batch_size": 1 << 16,
    "weights_every": 1 << 20,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """How the mixer of a session learns."""

    online: OnlineConfig
    """Losses and schedules."""
    optimiser: OptimiserConfig
    """Of the mixing block."""
    drop_path: float = 0.0
    """Of the classifier; the momentum copy of mode `openmixup` has it too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionSettings:
    """A session; two callers of it must agree on all but the world size."""

    mixer: MixerSpec
    """The mixer."""
    learning: Learning
    """How it learns."""
    num_classes: int
    """Of the classifier."""
    clean_head: bool
    """Whether clean images have a head of their own."""
    world_size: int
    """Ranks that train together."""
    batch_size: int
    """Most images in a batch of one rank."""
    length: RunLength
    """Of the whole run, in the trainers' steps."""
    seed: int
    """Of the block's first weights, and of dropout."""
    weights_every: int = 1
    """K: weights come after every K steps."""
    max_staleness: int = 0
    """Steps by which the mixer and the weights that mix a batch may lag behind it; 0 is lock-step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the networks' arithmetic; weights, losses and masks stay float32."""
    logits: Literal["float16", "float32"] = "float32"
    """How mask logits travel."""
    recipe: str = ""
    """Name of the trainers' recipe, for the artefact."""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if not 1 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} must lie in 1..{most}, got {getattr(self, name)}")
        if not 0 <= self.max_staleness <= MAX_STALENESS:
            raise ConfigError(f"max_staleness must lie in 0..{MAX_STALENESS}, got {self.max_staleness}; 0 is lock-step")
        if min(self.length.steps_per_epoch, self.length.epochs) < 1 or self.length.total_steps > _MOST_STEPS:
            raise ConfigError(
                f"steps_per_epoch and epochs must be positive and make at most {_MOST_STEPS} steps, got "
                f"{self.length.steps_per_epoch} and {self.length.epochs}"
            )
        if not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must be a number of at most 63 bits, got {self.seed}")
        if self.learning.optimiser.kind == "lamb":
            raise ConfigError("a session's mixer learns with sgd or adamw: no checkpoint keeps lamb's count of steps")
        if not 0 <= self.learning.drop_path < 1:
            raise ConfigError(f"drop_path must be at least 0 and below 1, got {self.learning.drop_path}")
        if not (self.recipe.isprintable() and len(self.recipe) <= 128):
            raise ConfigError(f"recipe must be at most 128 printable characters, got {self.recipe[:60]!r}")

    def build_classifier(self) -> Classifier:
        """Build what the trainers train, with weights drawn from the seed.

        Raises:
            ConfigError: if there is no such backbone.
        """
        return Classifier.build(
            self.mixer.backbone,
            self.num_classes,
            mean=self.mixer.mean,
            std=self.mixer.std,
            seed=self.seed,
            clean_head=self.clean_head,
            drop_path=self.learning.drop_path,
        )

    def weights_due(self, step: int) -> int:
        """Say how many steps the trainers must have done with the weights that may mix a batch of this step."""
        return max(0, step - self.max_staleness) // self.weights_every * self.weights_every

    def to_json(self) -> str:
        """Write the settings as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "SessionSettings":
        """Read what `to_json` wrote.

        Raises:
            ValueError: if a setting is missing, unknown, of the wrong kind or out of bounds.
        """
        return read_fields(cls, json.loads(text), "settings")
