"""What is trained: a backbone behind its normalisation, and the head of clean images where a method has its own."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.backbone import BackboneSpec, build_backbone
from samix.mixing.encoder import Channels, Normalise


class Classifier(nn.Module):
    """From images float [B, 3, H, W] in [0, 1] to logits [B, K]."""

    def __init__(self, normalise: Normalise, backbone: nn.Module, head_one: nn.Linear | None = None) -> None:
        super().__init__()
        self.normalise = normalise
        self.backbone = backbone
        self.head_one = head_one

    @classmethod
    def build(
        cls,
        spec: BackboneSpec,
        num_classes: int,
        *,
        mean: Channels,
        std: Channels,
        seed: int,
        clean_head: bool = False,
        drop_path: float = 0.0,
    ) -> "Classifier":
        """Build with random weights; the global random state is left as it was.

        Args:
            spec: which network.
            num_classes: K.
            mean: of each channel, for images in [0, 1].
            std: of each channel, likewise.
            seed: of the weights; the same on every rank.
            clean_head: give clean images a linear head of their own, as the public reference does.
            drop_path: share of images whose deepest residual block is skipped in training (stochastic depth).

        Raises:
            ConfigError: if there is no such backbone, or it cannot have a second head.
        """
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed: that would reseed the GPUs too
            backbone = build_backbone(spec, num_classes, drop_path=drop_path)
            head_one = _second_head(backbone, num_classes) if clean_head else None
        return cls(Normalise(mean, std), backbone, head_one)

    def forward(self, images: Tensor) -> Tensor:
        """Classify mixed images; this is also the head that is evaluated."""
        return self.backbone(self.normalise(images))

    def clean_logits(self, images: Tensor) -> Tensor:
        """Classify clean images: by their own head where there is one."""
        if self.head_one is None:
            return self(images)
        features = self.backbone.forward_features(self.normalise(images))  # type: ignore[operator]
        return self.head_one(self.backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]

    def heads(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Name what can be evaluated: the head of mixed images, and that of clean ones where there is one."""
        return {"mix": self} if self.head_one is None else {"mix": self, "one": self.clean_logits}


def _second_head(backbone: nn.Module, num_classes: int) -> nn.Linear:
    if not hasattr(backbone, "forward_head"):
        raise ConfigError(f"{type(backbone).__name__} takes no second head for clean images; use a backbone of timm")
    # Some bodies have a layer between their features and the last one; the words are timm's.
    width = getattr(backbone, "head_hidden_size", None) or backbone.num_features
    head = nn.Linear(width, num_classes)  # type: ignore[arg-type] - timm's word for the channels before the head
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head
