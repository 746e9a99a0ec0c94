"""Draw what happens inside a learned mixer: content of the partner, attention from a few points, mask and mix.

Attention is drawn in multiples of uniform attention rather than stretched to its own range: a block that looks at
everything alike would seem to look somewhere.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import colormaps
from torch import Tensor

from samix.mixing.batch import as_unit_float
from samix.mixing.block import BlockMaps
from samix.mixing.frozen import FrozenMixer
from samix.mixing.render import Rendering, blend, render_masks
from trainer.pictures.grid import Cell, Grid, Group, Mark, draw_grid
from trainer.quality import encode

_CAPTION = (
    "A mask is the attention of 'a' times the content of 'b'. Content: red draws what looks there towards 'b', blue "
    "towards 'a', up to the number. Attention: where in 'b' three points of 'a' look: 1 keeps most of 'a', 2 is the "
    "middle, 3 gives most of 'a' away; the number is the peak, in multiples of uniform. Mask: white where 'a' stays, "
    "before the lambda margin; the number is its mean."
)


def draw_maps(path: Path, mixers: Mapping[str, FrozenMixer], pictures: Tensor, lam: float) -> None:
    """Draw one row for each pair, one block of rows for each mixer.

    Args:
        path: the PNG.
        mixers: what mixes, by name.
        pictures: uint8, or float in [0, 1], [2 P, 3, S, S]; picture i is 'a' to the 'b' of picture P + i.
        lam: share of 'a'.
    """
    blocks = [_rows(mixer, pictures, lam) for mixer in mixers.values()]
    groups = [
        Group(heading="pair", titles=["a", "b"]),
        Group(heading="content", titles=["of b"]),
        Group(heading="attention to b", titles=["from 1", "from 2", "from 3"]),
        Group(heading=f"λ = {lam:g}", titles=["mask", "mix"]),
    ]
    names = "; below it ".join(mixers)
    draw_grid(path, Grid(caption=f"{names}. {_CAPTION}", groups=groups, blocks=blocks))


def query_points(logits: Tensor) -> list[tuple[int, int]]:
    """Choose the points whose attention is drawn: of the largest logit, in the middle, of the smallest.

    Args:
        logits: [h, w] of image i's share.

    Returns:
        (row, column) of each.
    """
    height, width = logits.shape
    extremes = [divmod(int(index), width) for index in (logits.argmax(), logits.argmin())]
    return [extremes[0], (height // 2, width // 2), extremes[1]]


def content_cell(content: Tensor, picture: Tensor) -> Cell:
    """Colour content: red where positive, blue where negative, transparent at 0.

    Args:
        content: [h, w] of the partner.
        picture: float32 [3, S, S] in [0, 1], the partner.
    """
    limit = content.abs().max().item()
    share = content / max(limit, 1e-12)
    return Cell(picture=_overlay((1 + share) / 2, share.abs(), picture, "coolwarm"), note=f"±{limit:.2g}")


def attention_cell(weights: Tensor, picture: Tensor) -> Cell:
    """Colour where one point looks; the scale ends at the peak, but not below twice uniform attention.

    Args:
        weights: [h, w], one row of the attention; they sum to 1.
        picture: float32 [3, S, S] in [0, 1], the partner.
    """
    multiples = weights * weights.numel()
    peak = multiples.max().item()
    share = multiples / max(2.0, peak)
    return Cell(picture=_overlay(share, share, picture, "magma"), note=f"{peak:.1f}x")


def _rows(mixer: FrozenMixer, pictures: Tensor, lam: float) -> list[list[Cell]]:
    pairs = len(pictures) // 2
    partner = torch.arange(2 * pairs, device=mixer.device).roll(-pairs)
    shares = torch.full((2 * pairs,), lam, device=mixer.device)
    with torch.no_grad():
        maps = mixer.net.block.maps(encode(mixer, pictures), shares, partner)
    pixels = as_unit_float(pictures.to(mixer.device))
    rendering = Rendering(upsampling=mixer.spec.rendering.upsampling, lam_margin=0.0)
    masks = render_masks(maps.logits, shares, (pixels.shape[2], pixels.shape[3]), rendering)
    mixes = blend(pixels, partner, masks)
    return [_row(maps, row, pixels[row], pixels[pairs + row], masks[row], mixes[row]) for row in range(pairs)]


def _row(maps: BlockMaps, row: int, a: Tensor, b: Tensor, mask: Tensor, mix: Tensor) -> list[Cell]:
    size = maps.logits.shape[2:]
    points = query_points(maps.logits[row, 0])
    marks = [
        Mark(text=str(number), x=(x + 0.5) / size[1], y=(y + 0.5) / size[0])
        for number, (y, x) in enumerate(points, start=1)
    ]
    looks = [maps.attention[row, y * size[1] + x].view(size) for y, x in points]
    return [
        Cell(picture=a, marks=marks),
        Cell(picture=b),
        content_cell(maps.content[row, 0], b),
        *(attention_cell(look, b) for look in looks),
        Cell(picture=mask.expand_as(a), note=f"{mask.mean().item():.2f}"),
        Cell(picture=mix),
    ]


def _overlay(values: Tensor, strength: Tensor, picture: Tensor, colours: str) -> Tensor:
    """Colour a map [h, w] in [0, 1] over a grey picture [3, S, S], more opaque where strong, each value a square."""
    both = F.interpolate(torch.stack([values, strength])[None], picture.shape[1:], mode="nearest")[0].cpu()
    heat = torch.from_numpy(colormaps[colours](both[0].numpy())[..., :3]).permute(2, 0, 1).float()
    grey = picture.mean(dim=0, keepdim=True).cpu().expand_as(heat)
    return torch.lerp(grey, heat, 0.5 + 0.5 * both[1].expand_as(heat))
