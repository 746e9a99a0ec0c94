"""The settings of a mixer, as they stand in an artefact: enough to rebuild it before its weights are read."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

from samix.errors import ArtefactError, BadBatch, ConfigError
from samix.mixing.backbone import BackboneSpec
from samix.mixing.block import BlockSpec
from samix.mixing.encoder import Channels
from samix.mixing.fields import read_fields
from samix.mixing.render import Rendering


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerSpec:
    """Everything about a mixer but its weights."""

    backbone: BackboneSpec
    """Network the encoder is cut from."""
    stage: int
    """Zero-based stage whose features are mixed; 2 in the papers (l = 3)."""
    block: BlockSpec
    """Settings of the mixing block."""
    rendering: Rendering
    """How logits become masks."""
    mean: Channels
    """Mean of each channel that the encoder expects to be subtracted, for images in [0, 1]."""
    std: Channels
    """Standard deviation of each channel, likewise."""
    image_size: int
    """Side of the square images the mixer was trained on, in pixels; others work as far as the limits below."""
    stride: int
    """Pixels per feature along a side: 16 at stage 2 of a ResNet, 4 with the CIFAR stem."""
    mode: Literal["paper", "openmixup"] = "paper"
    """Whose arithmetic: the papers', or bug for bug the public reference's."""
    min_side: int = 8
    """Smallest side of an image, in pixels."""
    max_side: int = 1024
    """Largest side of an image, in pixels."""
    max_tokens: int = 1024
    """Most features of one image; attention needs 4 * tokens^2 bytes for each, 4 MB at 1024."""

    def __post_init__(self) -> None:
        for name in ("image_size", "stride", "min_side", "max_side", "max_tokens"):
            if not 1 <= getattr(self, name) <= 65536:
                raise ConfigError(f"{name} must lie in 1..65536, got {getattr(self, name)}")
        if self.min_side > self.max_side:
            raise ConfigError(f"min_side must not exceed max_side, got {self.min_side} and {self.max_side}")
        if not all(abs(value) <= 1e6 for value in self.mean) or not all(1e-6 <= value <= 1e6 for value in self.std):
            raise ConfigError(f"mean must lie in +-1e6 and std in 1e-6..1e6, got {self.mean} and {self.std}")
        if not 0 <= self.rendering.lam_margin <= 0.5:
            raise ConfigError(f"lam_margin must lie in [0, 0.5], got {self.rendering.lam_margin}")

    def tokens(self, height: int, width: int) -> int:
        """Count the features of one image: the N of its N x N attention."""
        return -(-height // self.stride) * -(-width // self.stride)

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image the encoder cannot take.

        Raises:
            BadBatch: if a side or the number of tokens is out of bounds.
        """
        if not (self.min_side <= min(height, width) and max(height, width) <= self.max_side):
            raise BadBatch(
                f"images are {height} x {width}, this mixer takes sides of {self.min_side} to {self.max_side} pixels; "
                "resize them"
            )
        if self.tokens(height, width) > self.max_tokens:
            raise BadBatch(
                f"images of {height} x {width} make {self.tokens(height, width)} tokens, this mixer takes "
                f"{self.max_tokens}; resize them or use a mixer with a larger stride"
            )

    def to_json(self) -> str:
        """Write the spec as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "MixerSpec":
        """Read what `to_json` wrote.

        Raises:
            ArtefactError: if a setting is missing, unknown, of the wrong kind or out of bounds.
        """
        try:
            return read_fields(cls, json.loads(text), "spec")
        except (ValueError, RecursionError) as error:  # json recurses on nested brackets
            raise ArtefactError(f"its mixer settings cannot be read ({error}); export it again") from error
