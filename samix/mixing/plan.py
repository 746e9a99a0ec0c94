"""Who is mixed with whom, and how much: drawn once by whoever asks for the mix, from an explicit generator."""

import hashlib
import operator

import numpy as np
import torch
from torch import Tensor

from samix.errors import BadBatch, ConfigError
from samix.mixing.batch import MixPlan

SAMIX_ALPHA = 2.0
"""The papers draw lam from Beta(2, 2) for every learned mixer."""

_MAX_ALPHA = 1e6  # lam is 0.5 to three digits there, and far above it numpy's sampler overflows to 0 and NaN
_REDRAWS = 10  # a random permutation has no fixed point with probability 1/e: one in a hundred batches is shifted


def draw_plan(
    batch_size: int,
    *,
    alpha: float,
    generator: torch.Generator,
    per_sample: bool = False,
    no_fixed_points: bool = False,
) -> MixPlan:
    """Draw a pairing and mixing ratios; `generator` (on the CPU) is consumed.

    Args:
        batch_size: number of images B, at least 1.
        alpha: both parameters of the Beta distribution of lam; 2 for SAMix, 1 for Mixup on CIFAR.
        generator: where the randomness comes from.
        per_sample: draw one lam for each image instead of one for the batch.
        no_fixed_points: pair no image with itself; has no effect on a batch of one.

    Raises:
        BadBatch: if `batch_size` is not positive.
        ConfigError: if `alpha` is out of bounds.
    """
    if batch_size < 1:
        raise BadBatch(f"a batch holds at least one image, got {batch_size}")
    check_alpha(alpha)
    draws = _beta(alpha, batch_size if per_sample else 1, generator)
    draw_partner = _draw_derangement if no_fixed_points else _draw_permutation
    return MixPlan(lam=draws.expand(batch_size).contiguous(), partner=draw_partner(batch_size, generator))


def check_alpha(alpha: float) -> None:
    """Refuse a Beta distribution that cannot be drawn from.

    Raises:
        ConfigError: unless 0 < alpha <= 1e6.
    """
    if not 0 < alpha <= _MAX_ALPHA:
        raise ConfigError(
            f"alpha must be positive and at most {_MAX_ALPHA:.0f}, got {alpha}; use the policy 'none' for no mixing"
        )


def resolve_plan(
    batch_size: int,
    *,
    lam: float | Tensor | None,
    partner: Tensor | None,
    generator: torch.Generator | None,
    alpha: float = SAMIX_ALPHA,
) -> MixPlan:
    """Complete what a caller of `Mixer.mix` gave: check lam and partner, draw the missing ones.

    Raises:
        BadBatch: if lam leaves [0, 1], partner is no permutation, or something must be drawn and there is no generator.
    """
    if lam is None or partner is None:
        if generator is None:
            raise BadBatch("give seed=, or both lam= and partner=, so that the mix can be repeated")
        drawn = draw_plan(batch_size, alpha=alpha, generator=generator)
        lam = drawn.lam if lam is None else lam
        partner = drawn.partner if partner is None else partner
    return MixPlan(lam=_checked_lam(lam, batch_size), partner=_checked_partner(partner, batch_size))


def generator_for(*parts: int | str) -> torch.Generator:
    """Make a CPU generator whose stream depends on every part, for example (run seed, epoch, step, rank)."""
    return torch.Generator().manual_seed(derive_seed(*parts))


def derive_seed(*parts: int | str) -> int:
    """Hash the parts to a seed; hashed rather than added up, so that (1, 2) and (2, 1) are unrelated."""
    plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)  # numpy's 7 is a 7
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _draw_permutation(size: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(size, generator=generator)


def _draw_derangement(size: int, generator: torch.Generator) -> Tensor:
    identity = torch.arange(size)
    for _ in range(_REDRAWS):
        partner = _draw_permutation(size, generator)
        if not (partner == identity).any():
            return partner
    return identity.roll(1)


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    # torch.distributions takes no generator; numpy's sampler also stays exact for a tiny alpha.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def _checked_lam(lam: float | Tensor, batch_size: int) -> Tensor:
    try:
        values = torch.as_tensor(lam, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError) as error:
        raise BadBatch(f"lam must be a number or a tensor, got {lam!r:.60}") from error
    if values.dim() == 0:
        values = values.expand(batch_size).contiguous()
    if values.shape != (batch_size,):
        raise BadBatch(f"lam must be a number or [{batch_size}], got {list(values.shape)}")
    outside = ~((values >= 0) & (values <= 1))  # also catches NaN
    if outside.any():
        raise BadBatch(f"lam must lie in [0, 1], got {values[outside][0].item()}")
    return values


def _checked_partner(partner: Tensor, batch_size: int) -> Tensor:
    indices = torch.as_tensor(partner, device="cpu")
    if indices.dtype.is_floating_point or indices.shape != (batch_size,):
        raise BadBatch(f"partner must be int64 [{batch_size}], got {indices.dtype} {list(indices.shape)}")
    indices = indices.long()
    if not torch.equal(indices.sort().values, torch.arange(batch_size)):
        raise BadBatch(f"partner must be a permutation of 0..{batch_size - 1}, got {indices.tolist()[:16]}")
    return indices
