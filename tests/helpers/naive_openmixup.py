"""Masks of the public reference implementation, computed from its checkpoints' own keys and its description alone.

Float64, nothing of ours in between: a ResNet written as a loop over its blocks, and the mixing block of naive_block.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from naive_block import curve
from torch import Tensor

State = Mapping[str, Tensor]


def naive_masks(
    state: State,
    images: Tensor,
    lam: Tensor,
    partner: Tensor,
    *,
    stage: int = 2,
    lam_curve: float = -1.0,
    upsampling: str,
) -> Tensor:
    """Share of image i, float64 [B, 1, H, W], for normalised images and lam [B]."""
    state = {key: tensor.double() for key, tensor in state.items() if tensor.is_floating_point()}
    features = naive_features(state, images.double(), stage)
    other_share = torch.cat(
        [
            _partner_logits(state, features[[index]], features[[other]], float(share), lam_curve)
            for index, (other, share) in enumerate(zip(partner.tolist(), lam.tolist(), strict=True))
        ]
    )
    corners = False if upsampling == "bilinear" else None
    scale = images.shape[-1] // features.shape[-1]
    return 1 - F.interpolate(other_share, scale_factor=scale, mode=upsampling, align_corners=corners).sigmoid()


def naive_features(state: State, images: Tensor, stage: int) -> Tensor:
    """Output of a stage of the momentum encoder, in evaluation mode."""
    name, first = "backbone_k.", state["backbone_k.conv1.weight"]
    has_big_stem = first.shape[-1] == 7
    x = F.conv2d(images, first, stride=2 if has_big_stem else 1, padding=first.shape[-1] // 2)
    x = _norm(state, f"{name}bn1", x).relu()
    if has_big_stem:
        x = F.max_pool2d(x, 3, stride=2, padding=1)
    for layer in range(1, stage + 2):
        number = 0
        while f"{name}layer{layer}.{number}.conv1.weight" in state:
            stride = 2 if layer > 1 and number == 0 else 1
            x = _residual_block(state, f"{name}layer{layer}.{number}", x, stride)
            number += 1
    return x


def _residual_block(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    convolutions = [number for number in (1, 2, 3) if f"{name}.conv{number}.weight" in state]
    strided = 2 if len(convolutions) == 3 else 1
    out = x
    for number in convolutions:
        kernel = state[f"{name}.conv{number}.weight"]
        groups = out.shape[1] // kernel.shape[1]
        own_stride = stride if number == strided else 1
        out = F.conv2d(out, kernel, stride=own_stride, padding=kernel.shape[-1] // 2, groups=groups)
        out = _norm(state, f"{name}.bn{number}", out)
        if number != convolutions[-1]:
            out = out.relu()
    if f"{name}.downsample.0.weight" in state:
        x = _norm(state, f"{name}.downsample.1", F.conv2d(x, state[f"{name}.downsample.0.weight"], stride=stride))
    return (x + out).relu()


def _norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    column = (1, -1, 1, 1)
    return (x - mean.view(column)) / (var.view(column) + 1e-5).sqrt() * weight.view(column) + bias.view(column)


def _partner_logits(state: State, own: Tensor, other: Tensor, lam: float, lam_curve: float) -> Tensor:
    """One pair [1, C, h, w] each, to the logits of the partner's share [1, 1, h, w]."""
    query_kernel, query_bias = state["mix_block.query.conv.weight"], state["mix_block.query.conv.bias"]
    if "mix_block.key.conv.weight" in state:  # SAMix
        bent = curve(lam, lam_curve)
        own, other = own * (1 + bent), other * (1 + (1 - bent))
        both = torch.cat([own, other], dim=1)
        query = F.conv2d(both, query_kernel, query_bias)
        key = F.conv2d(both, state["mix_block.key.conv.weight"], state["mix_block.key.conv.bias"])
        hidden = _norm(state, "mix_block.value.conv.0.bn", F.conv2d(other, state["mix_block.value.conv.0.conv.weight"]))
        value = F.conv2d(F.elu(hidden), state["mix_block.value.conv.1.conv.weight"])
    else:  # AutoMix
        if query_kernel.shape[1] == own.shape[1] + 1:
            own = torch.cat([own, torch.full_like(own[:, :1], lam)], dim=1)
            other = torch.cat([other, torch.full_like(other[:, :1], 1 - lam)], dim=1)
        query, key = F.conv2d(own, query_kernel, query_bias), F.conv2d(other, query_kernel, query_bias)
        value = F.conv2d(other, state["mix_block.value.weight"], state["mix_block.value.bias"])
    scores = query.flatten(2)[0].T @ key.flatten(2)[0] / query.shape[1] ** 0.5
    return (scores.softmax(dim=1) @ value.flatten()).view_as(value)
