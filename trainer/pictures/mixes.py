"""Draw pairs of pictures mixed at some lambdas by one or several mixers, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from samix.mixing.batch import as_unit_float
from samix.mixing.protocol import Mixer
from trainer.pairs import mix_pairs
from trainer.pictures.grid import Cell, Grid, Group, draw_grid

_CAPTION = (
    "Left: a pair, 'a' above 'b'. Right: its mixes at λ, the share of 'a'; below each the mask, white where 'a' stays. "
    "The number is the mask's mean."
)


def draw_gallery(
    path: Path, mixers: Mapping[str, Mixer], pictures: Tensor, lams: Sequence[float], *, seed: int
) -> None:
    """Draw each pair as two rows: mixes above, masks below; one group of columns for each mixer.

    Args:
        path: the PNG.
        mixers: what mixes, by the name that is written above it.
        pictures: uint8, or float in [0, 1], [2 P, 3, S, S]; picture i is 'a' to the 'b' of picture P + i.
        lams: share of 'a' in each column of a group.
        seed: what a policy draws from.
    """
    left, right = pictures.chunk(2)
    mixes = [mix_pairs(mixer, left, right, lam, seed=seed) for mixer in mixers.values() for lam in lams]
    blocks = []
    for row, (a, b) in enumerate(zip(as_unit_float(left), as_unit_float(right), strict=True)):
        masks = [mixed.masks[row] for mixed in mixes]
        above = [Cell(picture=a, note="a"), *(Cell(picture=mixed.images[row]) for mixed in mixes)]
        below = [Cell(picture=b, note="b"), *(Cell(picture=mask.expand_as(b), note=_mean(mask)) for mask in masks)]
        blocks.append([above, below])
    titles = [f"λ = {lam:g}" for lam in lams]
    groups = [Group(heading="", titles=["pair"]), *(Group(heading=name, titles=titles) for name in mixers)]
    draw_grid(path, Grid(caption=_CAPTION, groups=groups, blocks=blocks))


def _mean(mask: Tensor) -> str:
    return f"{mask.mean().item():.2f}"
