"""The mixing block once more, from its description alone: float64, one image and one token at a time."""

import numpy as np
from beartype import beartype
from jaxtyping import Float, Float64, Int, jaxtyped

from samix.mixing.block import BlockSpec

Weights = dict[str, np.ndarray]


@jaxtyped(typechecker=beartype)
def naive_mask_logits(
    spec: BlockSpec,
    weights: Weights,
    features: Float[np.ndarray, "batch channels height width"],
    lam: Float[np.ndarray, " batch"],
    partner: Int[np.ndarray, " batch"],
) -> Float64[np.ndarray, "batch 1 height width"]:
    """Logits of image i's share, clamped to +-30, batch norm in evaluation mode."""
    height, width = features.shape[2:]
    tokens = features.astype(np.float64).reshape(*features.shape[:2], -1).transpose(0, 2, 1)
    rows = [
        _one_mask(spec, weights, tokens[index], tokens[other], float(lam[index])) for index, other in enumerate(partner)
    ]
    return np.stack(rows).reshape(-1, 1, height, width).clip(-30, 30)


def curve(lam: float, k: float) -> float:
    """The reference's cubic: lam' = (4/3 lam^3 - 2 lam^2 + K lam) / (K - 2/3), K = k + 1; k = -1 keeps lam."""
    if k == -1:
        return lam
    big_k = min(k, 10) + 1
    return (4 / 3 * lam**3 - 2 * lam**2 + big_k * lam) / (big_k - 2 / 3)


@jaxtyped(typechecker=beartype)
def _one_mask(
    spec: BlockSpec,
    weights: Weights,
    own: Float64[np.ndarray, "tokens channels"],
    other: Float64[np.ndarray, "tokens channels"],
    lam: float,
) -> Float64[np.ndarray, " tokens"]:
    if spec.lam_encoding == "multiply":
        gamma, bent = float(weights["gamma"]), curve(lam, spec.lam_curve)
        own, other = own * (1 + gamma * bent), other * (1 + gamma * (1 - bent))
    elif spec.lam_encoding == "concat":
        own, other = _with_constant(own, lam), _with_constant(other, 1 - lam)
    both = np.concatenate([own, other], axis=1)
    if spec.attention == "concat":
        query, key = _conv1x1(weights, "query", both), _conv1x1(weights, "key", both)
    else:
        query, key = _conv1x1(weights, "query", own), _conv1x1(weights, "query", other)
    content = _content(spec, weights, other)
    logits = np.empty(len(own))
    for token in range(len(own)):
        scores = np.exp([query[token] @ key[seen] / query.shape[1] ** 0.5 for seen in range(len(own))])
        logits[token] = -(scores / scores.sum()) @ content
    return logits


def _content(spec: BlockSpec, weights: Weights, tokens: np.ndarray) -> np.ndarray:
    if spec.content == "linear":
        return _conv1x1(weights, "content", tokens)[:, 0]
    hidden = _conv1x1(weights, "content.0", tokens)
    deviation = np.sqrt(weights["content.1.running_var"] + 1e-5)
    hidden = (hidden - weights["content.1.running_mean"]) / deviation
    hidden = hidden * weights["content.1.weight"] + weights["content.1.bias"]
    active = np.maximum(hidden, 0) if spec.activation == "relu" else np.where(hidden > 0, hidden, np.expm1(hidden))
    return _conv1x1(weights, "content.3", active)[:, 0]


def _conv1x1(weights: Weights, name: str, tokens: np.ndarray) -> np.ndarray:
    return tokens @ weights[f"{name}.weight"][:, :, 0, 0].T + weights.get(f"{name}.bias", 0.0)


def _with_constant(tokens: np.ndarray, value: float) -> np.ndarray:
    return np.concatenate([tokens, np.full((len(tokens), 1), value)], axis=1)
