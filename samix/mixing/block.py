"""The mixing block: from the features of two images to the logits of a mask (SAMix, arXiv:2111.15454, section 3.2).

The surprising part: only the content of the *partner* is projected, so that attention carries it to the pixels of image
i. The map it gives is the partner's share; what leaves the block is image i's, hence a minus sign at the end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from samix.errors import ConfigError
from samix.mixing.render import LOGIT_LIMIT


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockSpec:
    """Settings of a mixing block; the defaults are SAMix as the paper means it."""

    lam_encoding: Literal["none", "multiply", "concat"] = "multiply"
    """How lam enters: `multiply` scales features by 1 + gamma * lam, `concat` appends lam as a channel (AutoMix)."""
    learnable_gamma: bool = True
    """Learn gamma in [0, 1] from 0, as the paper has it; False fixes it at 1, as its code does."""
    lam_curve: float = -1.0
    """k of the cubic that bends lam for `multiply`: -1, or 0 and more. -1 leaves lam as it is; larger is straighter."""
    content: Literal["nonlinear", "linear"] = "nonlinear"
    """Projection of the partner's features to one channel: two 1x1 layers (SAMix) or one (AutoMix)."""
    activation: Literal["relu", "elu"] = "relu"
    """Between the two layers of the non-linear content: ReLU in the paper, ELU in its code."""
    attention: Literal["concat", "cross"] = "concat"
    """`concat`: query and key both see both images (SAMix); `cross`: one shared projection of each (AutoMix)."""
    reduction: int = 2
    """Channels of query and key are C / reduction."""
    dropout: float = 0.0
    """On the non-linear content, while training: 0 for CIFAR and Tiny, 0.1 for ImageNet and CUB."""

    def __post_init__(self) -> None:
        if self.lam_encoding == "concat" and self.attention == "concat":
            raise ConfigError("lam_encoding 'concat' needs attention 'cross'; use 'multiply' with attention 'concat'")
        if self.lam_curve != -1 and not 0 <= self.lam_curve < math.inf:
            raise ConfigError(f"lam_curve must be -1 (straight) or at least 0, got {self.lam_curve}")
        if not 1 <= self.reduction <= 64:
            raise ConfigError(f"reduction must lie in 1..64, got {self.reduction}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.dropout > 0 and self.content == "linear":
            raise ConfigError(f"dropout is for content 'nonlinear', got {self.dropout} with 'linear'; use 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMaps:
    """What a block looked at on its way to the logits. N = h * w, rows first."""

    content: Tensor
    """float32 [B, 1, h, w], of the partner: what its features add to its own share wherever attention carries them."""
    attention: Tensor
    """float32 [B, N, N]: row n is how much feature n of image i looks at each feature of the partner; it sums to 1."""
    logits: Tensor
    """float32 [B, 1, h, w], logits of image i's share: minus attention times content, within +-LOGIT_LIMIT."""


class MixingBlock(nn.Module):
    """Predict mask logits from stage features. C channels, N = h * w tokens.

    Its weights stay in float32 when a model around it is cast to half precision.
    """

    def __init__(self, spec: BlockSpec, channels: int) -> None:
        super().__init__()
        self.spec = spec
        width = max(1, channels // spec.reduction)
        lam_channels = int(spec.lam_encoding == "concat")
        if spec.attention == "concat":
            self.query = nn.Conv2d(2 * channels, width, 1)
            self.key = nn.Conv2d(2 * channels, width, 1)
        else:
            self.query = nn.Conv2d(channels + lam_channels, width, 1)
        self.content = _content(spec, channels + lam_channels)
        gamma = torch.zeros(()) if spec.learnable_gamma else torch.ones(())
        self.gamma = nn.Parameter(gamma, requires_grad=spec.learnable_gamma and spec.lam_encoding == "multiply")
        _init(self, channels)

    def forward(self, features: Tensor, lam: Tensor | float, partner: Tensor) -> Tensor:
        """Predict logits.

        Runs in float32 whatever the autocast: in half precision features of 1e3 overflow the product of query and key.

        Args:
            features: [B, C, h, w] of the clean images, any float type.
            lam: float32 [B], share of image i, or one number for all.
            partner: int64 [B].

        Returns:
            float32 [B, 1, h, w], logits of image i's share, within +-LOGIT_LIMIT.
        """
        return self.maps(features, lam, partner).logits

    def maps(self, features: Tensor, lam: Tensor | float, partner: Tensor) -> BlockMaps:
        """Predict logits and keep what led to them, for pictures; see `forward`."""
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            share = torch.as_tensor(lam, dtype=torch.float32, device=features.device).view(-1, 1, 1, 1)
            own = self._encode_lam(features, share)
            other = self._encode_lam(features[partner], 1 - share)
            attention = attend(*self._query_and_key(own, other))
            content = self.content(other)
            # The value stays one channel wide, so that only the weights are as large as [B, N, N].
            partner_share = (attention @ content.flatten(2).transpose(1, 2)).view_as(content)
            logits = (-partner_share).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
            return BlockMaps(content=content, attention=attention, logits=logits)

    @torch.no_grad()
    def project(self) -> None:
        """Bring gamma back into [0, 1]; called after each optimiser step (projected gradient)."""
        self.gamma.clamp_(0, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MixingBlock":
        # `model.half()` and `model.bfloat16()` come through here.
        def keep_float32(tensor: Tensor) -> Tensor:
            changed = fn(tensor)
            is_halved = changed.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(changed.device) if is_halved else changed

        return super()._apply(keep_float32, recurse)

    def _encode_lam(self, features: Tensor, share: Tensor) -> Tensor:
        if self.spec.lam_encoding == "multiply":  # z_lam = (1 + gamma * lam) z, AMix, section 3.2
            return features * (1 + self.gamma * bend_lam(share, self.spec.lam_curve))
        if self.spec.lam_encoding == "concat":
            return torch.cat([features, share.expand(len(features), 1, *features.shape[2:])], dim=1)
        return features

    def _query_and_key(self, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        if self.spec.attention == "cross":
            return self.query(own), self.query(other)
        both = torch.cat([own, other], dim=1)
        return self.query(both), self.key(both)


def attend(query: Tensor, key: Tensor) -> Tensor:
    """Weigh the features of the partner for each feature of image i: softmax(q k / sqrt(d)).

    Args:
        query: [B, d, h, w].
        key: [B, d, h, w].

    Returns:
        [B, N, N] with N = h * w; rows sum to 1.
    """
    scale = query.shape[1] ** -0.5
    return torch.einsum("bcn,bcm->bnm", query.flatten(2) * scale, key.flatten(2)).softmax(dim=-1)


def bend_lam(lam: Tensor, k: float) -> Tensor:
    """Bend lam by the reference's cubic, symmetric about (0.5, 0.5) with 0 -> 0 and 1 -> 1.

    lam' = (4/3 lam^3 - 2 lam^2 + K lam) / (K - 2/3) with K = k + 1; k = -1 leaves lam unchanged.

    Args:
        lam: float32, any shape.
        k: -1, or at least 0 (0.25 and 1 are published); values above 10 count as 10.
    """
    if k == -1:
        return lam
    slope = min(k, 10.0) + 1
    return (4 / 3 * lam**3 - 2 * lam**2 + slope * lam) / (slope - 2 / 3)


def _content(spec: BlockSpec, channels: int) -> nn.Module:
    if spec.content == "linear":
        return nn.Conv2d(channels, 1, 1)
    width = channels // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU() if spec.activation == "relu" else nn.ELU(),
        nn.Conv2d(width, 1, 1, bias=False),
        nn.Dropout(spec.dropout),
    )


def _init(block: nn.Module, channels: int) -> None:
    # N(0, 0.01) as published for 256 channels and more: masks start within 0.50 +- 0.02, training as plain averaging.
    # Narrow encoders get larger weights, or their attention would stay uniform for thousands of steps.
    std = 0.01 * max(1.0, (256 / channels) ** 0.5)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
