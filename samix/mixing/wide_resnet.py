"""Wide residual networks for 32 px images (Zagoruyko and Komodakis, arXiv:1605.07146), which timm does not have.

Batch norm and ReLU stand before each convolution, so what a stage puts out is neither normalised nor rectified. timm's
`wide_resnet50_2` is another network: a ResNet-50 with wide bottlenecks.
"""

import re

import torch.nn.functional as F
from torch import Tensor, nn

from samix.mixing.chain import ChainBackbone

_NAME = re.compile(r"wide_resnet(\d{1,3})_(\d{1,2})")


def parse_wide_resnet(name: str) -> tuple[int, int] | None:
    """Read depth and width from a name such as `wide_resnet28_8`; None if it names no network of this kind."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    depth, width = int(match[1]), int(match[2])
    return (depth, width) if depth >= 10 and depth % 6 == 4 and width >= 1 else None


class WideResNet(ChainBackbone):
    """WRN-depth-width: a 3x3 convolution and three stages, of 16, 32 and 64 times `width` channels (their table 1)."""

    def __init__(self, depth: int, width: int, num_classes: int) -> None:
        channels = (16, 16 * width, 32 * width, 64 * width)
        super().__init__(
            steps=("conv1", "stages.0", "stages.1", "stages.2"),
            feature_info=[
                {"module": f"stages.{stage}", "num_chs": channels[stage + 1], "reduction": 2**stage}
                for stage in range(3)
            ],
        )
        num_blocks = (depth - 4) // 6
        self.num_features = channels[-1]
        self.conv1 = nn.Conv2d(3, channels[0], kernel_size=3, padding=1, bias=False)
        self.stages = nn.Sequential(
            *(
                _stage(channels[stage], channels[stage + 1], stride=1 if stage == 0 else 2, num_blocks=num_blocks)
                for stage in range(3)
            )
        )
        self.norm = nn.BatchNorm2d(self.num_features)
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Classify normalised images [B, 3, H, W]; logits [B, K], or pooled features where there are no classes."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Run all but pooling and classifier: [B, C, h, w]."""
        return F.relu(self.norm(self.stages(self.conv1(images))))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the last features and classify them; `pre_logits` leaves the classifier out, as with timm's networks."""
        pooled = features.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)


def _stage(inputs: int, outputs: int, *, stride: int, num_blocks: int) -> nn.Sequential:
    later = (_Block(outputs, outputs, stride=1) for _ in range(num_blocks - 1))
    return nn.Sequential(_Block(inputs, outputs, stride), *later)


class _Block(nn.Module):
    """Two 3x3 convolutions, each behind its batch norm and ReLU, added to what came in."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.norm1(features))
        residual = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return residual + (features if self.shortcut is None else self.shortcut(active))
