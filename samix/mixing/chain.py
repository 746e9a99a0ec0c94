"""Networks that are not timm's: their body is a chain of child modules, so running fewer of them cuts it.

timm's networks bring `forward_intermediates` and pruning along. Both kinds tell of their features in `feature_info`,
in timm's words: the module that ends a feature, its channels (`num_chs`) and its stride (`reduction`).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class ChainBackbone(nn.Module):
    """A network whose child modules `steps`, one after the other, lead from images to its last feature."""

    def __init__(self, steps: Sequence[str], feature_info: list[dict[str, Any]]) -> None:
        super().__init__()
        self.steps = steps
        self.feature_info = feature_info

    def features(self, images: Tensor, index: int) -> Tensor:
        """Run the steps up to one feature.

        Args:
            images: normalised, [B, 3, H, W].
            index: of the feature, in `feature_info`.

        Returns:
            [B, C, h, w].
        """
        features = images
        for step in self._steps_of(index):
            features = self.get_submodule(step)(features)
        return features.permute(0, 3, 1, 2) if self.feature_info[index].get("channels_last") else features

    def cut(self, index: int) -> None:
        """Remove all layers that a feature does not need; the classifier goes too."""
        _keep_only(self, "", self._steps_of(index))

    def _steps_of(self, index: int) -> Sequence[str]:
        return self.steps[: self.steps.index(self.feature_info[index]["module"]) + 1]


def _keep_only(module: nn.Module, prefix: str, kept: Sequence[str]) -> None:
    for name, child in list(module.named_children()):
        path = prefix + name
        if any(step.startswith(f"{path}.") for step in kept):
            _keep_only(child, f"{path}.", kept)
        elif path not in kept:
            delattr(module, name)
