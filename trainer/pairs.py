"""Mix pictures pair by pair, so that what is drawn or measured for one pair does not depend on the others.

A batch would not do: CutMix and others draw one box for a whole batch of equal lam, as their papers have it.
"""

import torch
from torch import Tensor

from samix.mixing.batch import MixedBatch
from samix.mixing.plan import derive_seed
from samix.mixing.protocol import Mixer


def mix_pairs(mixer: Mixer, left: Tensor, right: Tensor, lam: float, *, seed: int) -> MixedBatch:
    """Mix each left picture with the right one of its row, at one lam.

    Args:
        mixer: a policy or a learned mixer.
        left: uint8, or float in [0, 1], [P, 3, H, W].
        right: likewise.
        lam: share of the left pictures.
        seed: row r draws from (seed, r), whatever lam is: a box stays where it is while lam changes its size.
    """
    rows = [
        mixer.mix(torch.stack(pair), lam=lam, partner=torch.tensor([1, 0]), seed=derive_seed(seed, row))
        for row, pair in enumerate(zip(left, right, strict=True))
    ]
    return MixedBatch(
        images=torch.stack([row.images[0] for row in rows]),
        labels_a=None,
        labels_b=None,
        lam=torch.stack([row.lam[0] for row in rows]),
        masks=torch.stack([row.masks[0] for row in rows]),
    )
