"""Draw one pair of pictures beside the mixes that several ways of mixing make of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from samix.mixing.batch import MixedBatch, as_unit_float
from trainer.pictures.grid import Cell, Grid, Group, draw_grid

_SIDE = 224  # pixels a picture has at least


@dataclass(frozen=True, kw_only=True, slots=True)
class PairMix:
    """What one way of mixing made of a pair."""

    name: str
    """Of the way."""
    how: str
    """What it does, in a few words."""
    mixed: MixedBatch
    """Its first image is the mix of the first picture with the second."""


def draw_pair(path: Path, pair: Tensor, lam: float, mixes: Sequence[PairMix]) -> None:
    """Draw the first picture above the second, then each mix above its mask, as PNG.

    Args:
        path: the PNG.
        pair: uint8, or float in [0, 1], [2, 3, S, S].
        lam: share of the first picture that was asked for.
        mixes: from left to right.
    """
    a, b = as_unit_float(pair.cpu())
    masks = [mix.mixed.masks[0].cpu().expand_as(a) for mix in mixes]
    above = [Cell(picture=a, note="A"), *(Cell(picture=mix.mixed.images[0]) for mix in mixes)]
    below = [Cell(picture=b, note="B"), *(Cell(picture=mask, note=f"{mask.mean().item():.2f}") for mask in masks)]
    groups = [
        Group(heading="the pair", titles=["A above B"]),
        *(Group(heading=mix.name, titles=[mix.how]) for mix in mixes),
    ]
    caption = (
        f"λ = {lam:g}: {100 * lam:.3g} % of A and {100 * (1 - lam):.3g} % of B are asked for. Above the mixes, below "
        "the mask of each: white where A stays, black where B shows; the number is A's share of it."
    )
    draw_grid(path, Grid(caption=caption, groups=groups, blocks=[[above, below]], cell=_SIDE))
