"""Puzzle Mix: shares of blocks chosen by saliency, and cells moved so that more of what is salient is shown.

The mask comes first. It shows as much saliency of both images as it can, keeps neighbouring blocks alike, avoids seams
between unlike pixels, and follows lam only as a prior: the lam of the mix is what the mask shows, not what was asked
for. Then each image rearranges its own cells, so that the mix is no blend of the images as they were.
"""

import math
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.policies.base import HandCraftedMixer, batch_of, needed
from samix.mixing.policies.puzzle_cut import least_labels
from samix.mixing.policies.puzzle_seams import Seams
from samix.mixing.policies.puzzle_transport import move_cells, transport
from samix.mixing.policies.saliency import Saliency, fine_grained_saliency, measure

_FINEST = 16  # blocks or cells a side; the paper draws 2, 4, 8 or 16 blocks
_FORBIDDEN = 10.0  # cost of a label that lam = 0 or 1 rules out; all the saliency of an image is worth 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PuzzleSettings:
    """What Puzzle Mix weighs against each other; the defaults are the published ones for CIFAR-100."""

    num_labels: int = 3
    """Shares a block may have: 3 are 0, 1/2 and 1."""
    beta: float = 1.2
    """Weight of the smoothness of the mask."""
    gamma: float = 0.5
    """Weight of seams between unlike pixels, in 0..1, relative to beta."""
    eta: float = 0.2
    """Weight of the prior that lam is."""
    seam_px: int = 4
    """Depth of the strips along a border that are compared, in pixels; `neigh_size` of the public code."""
    moves_cells: bool = True
    """Whether the images are rearranged; if not, the mix is a blend of the two."""
    cost_of_distance: float = 0.8
    """Price of moving across the image, in units of saliency; `t_eps` of the public code."""
    cell_px: int = 4
    """Side of the cells that are moved, in pixels, `t_size` of the public code; a cell is larger where there would be
    more than 16 a side, and smaller where a block is."""

    def __post_init__(self) -> None:
        if not 2 <= self.num_labels <= 16:
            raise ConfigError(f"num_labels must lie in 2..16, got {self.num_labels}; the paper's is 3")
        if not 0 <= self.gamma <= 1:  # or blocks could gain by being unlike, and no cut would find the best mask
            raise ConfigError(f"gamma must lie in 0..1, got {self.gamma}; the paper's is 0.5")
        for name in ("beta", "eta", "cost_of_distance", "seam_px", "cell_px"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")


def puzzlemix(
    alpha: float = 1.0, *, saliency: Saliency | None = None, settings: PuzzleSettings | None = None
) -> HandCraftedMixer:
    """Cut a puzzle of the two images along a graph cut (Kim et al., arXiv:2009.06962).

    The cut runs on the CPU, all else on the device of the images. Always needs a seed: it draws the number of blocks.

    Args:
        alpha: 1 in the paper.
        saliency: what a pixel is worth. The paper's is `gradient_saliency` of the model that is trained; None is the
            static fine-grained saliency, which needs neither a model nor labels.
        settings: the weights; None is as published.

    Raises:
        ConfigError: if SciPy is not installed, or alpha is out of bounds.
    """
    if find_spec("scipy") is None:
        raise ConfigError("PuzzleMix cuts its graph with SciPy: pip install 'samix-service[puzzlemix]'")
    compose = partial(_compose, saliency or fine_grained_saliency, settings or PuzzleSettings())
    return HandCraftedMixer(compose=compose, alpha=alpha)


@dataclass(frozen=True, slots=True)
class _Grid:
    """How an image is divided, (height, width) each; the last blocks and cells may reach over its edge."""

    cell: tuple[int, int]
    """Size of a cell in pixels."""
    split: tuple[int, int]
    """Cells of a block along either side."""

    @property
    def block(self) -> tuple[int, int]:
        return self.cell[0] * self.split[0], self.cell[1] * self.split[1]


@torch.no_grad()
def _compose(
    saliency: Saliency,
    settings: PuzzleSettings,
    images: Tensor,
    labels: Tensor | None,
    plan: MixPlan,
    generator: torch.Generator | None,
) -> MixedBatch:
    generator = needed(generator, "PuzzleMix draws how many blocks it has")
    num_blocks = 2 ** int(torch.randint(1, 5, (), generator=generator))
    grid = _lay_out((images.shape[2], images.shape[3]), num_blocks, settings.cell_px)
    heat, partner = measure(saliency, images, labels), plan.partner.to(images.device)
    shares = _best_shares(images, heat, plan.lam.to(images.device), partner, grid, settings)
    masks = _enlarge(shares, grid.block, images.shape[2:])
    own, theirs = images, images[partner]
    if settings.moves_cells:
        cell_shares = masks[:, :: grid.cell[0], :: grid.cell[1]]
        cell_heat = _pool(heat, grid.cell)
        own = move_cells(own, transport(cell_heat, cell_shares > 0, settings.cost_of_distance), grid.cell)
        sources = transport(cell_heat[partner], cell_shares < 1, settings.cost_of_distance)
        theirs = move_cells(theirs, sources, grid.cell)
    return batch_of(torch.lerp(theirs, own, masks[:, None]), labels, plan, masks[:, None])


def _lay_out(size: tuple[int, int], num_blocks: int, cell_px: int) -> _Grid:
    cells, splits = [], []
    for length in size:
        split = _FINEST // num_blocks
        while split > 1 and length < cell_px * num_blocks * split:
            split //= 2
        cells.append(math.ceil(length / (num_blocks * split)))
        splits.append(split)
    return _Grid((cells[0], cells[1]), (splits[0], splits[1]))


def _best_shares(
    images: Tensor, heat: Tensor, lam: Tensor, partner: Tensor, grid: _Grid, settings: PuzzleSettings
) -> Tensor:
    """Find the share of image i in each block, float32 [B, h, w], by minimising the paper's objective over masks."""
    own = _pool(heat, grid.block)
    num_steps, num_blocks = settings.num_labels - 1, own[0].numel()
    beta = settings.beta / (16 * math.sqrt(num_blocks))  # the published scale
    seam = Seams.between(images, partner, grid.block, settings.seam_px)
    # What showing image i costs beyond showing its partner; shares between the two are charged in proportion.
    extra = own[partner] - own + beta * settings.gamma * seam.of_showing
    shares = torch.linspace(0, 1, settings.num_labels, device=images.device).view(1, -1, 1, 1)
    costs = shares * extra[:, None] + _prior_costs(lam, num_steps, settings.eta / num_blocks)[:, :, None, None]
    below, beside = (beta * (1 + settings.gamma * unlike) / num_steps**2 for unlike in (seam.below, seam.beside))
    return least_labels(costs, below, beside).to(images.device).float() / num_steps


def _prior_costs(lam: Tensor, num_steps: int, weight: float) -> Tensor:
    # -log of the binomial distribution of the label, float32 [B, L].
    labels = torch.arange(num_steps + 1, device=lam.device)
    ways = torch.tensor([math.comb(num_steps, label) for label in range(num_steps + 1)], device=lam.device)
    log_p = ways.log() + torch.xlogy(labels, lam[:, None]) + torch.xlogy(num_steps - labels, 1 - lam[:, None])
    return (-weight * log_p).clamp(max=_FORBIDDEN)


def _pool(heat: Tensor, size: tuple[int, int]) -> Tensor:
    # Saliency of blocks or cells, summing up to 1 in each image unless it is 0 everywhere.
    sums = F.avg_pool2d(heat[:, None], size, ceil_mode=True, divisor_override=1)[:, 0]
    return sums / sums.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(sums.dtype).tiny)


def _enlarge(blocks: Tensor, block: tuple[int, int], size: torch.Size) -> Tensor:
    pixels = blocks.repeat_interleave(block[0], dim=1).repeat_interleave(block[1], dim=2)
    return pixels[:, : size[0], : size[1]]
