"""The transport of Puzzle Mix: which cell of an image moves where, so that what is salient lies inside the mask.

Every cell asks for its cheapest place, every place keeps the cheapest cell that asked, and the refused ask again (the
masked transport of arXiv:2009.06962). That is Gale and Shapley's deferred acceptance, so it ends, and it ends with a
permutation. The public code stops after a few rounds instead and leaves places black that nobody got.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def transport(saliency: Tensor, wanted: Tensor, cost_of_distance: float) -> Tensor:
    """Move salient cells into the mask.

    Args:
        saliency: float32 [B, h, w] >= 0, summing up to 1 in each image.
        wanted: bool [B, h, w], whether the mask shows anything of this image there.
        cost_of_distance: price of moving across the longer side of the grid, in units of saliency.

    Returns:
        int64 [B, h * w]: the cell that moves to each place; a permutation of the cells of each image, and the identity
        where all or nothing is wanted.
    """
    distance = _squared_distance(saliency.shape[1], saliency.shape[2], saliency.device)
    cells, places = saliency.flatten(1)[:, :, None], wanted.flatten(1)[:, None].to(saliency.dtype)
    # No matrix product: under autocast it would round to 8 bits.
    return assign(torch.addcmul(cost_of_distance * distance, cells, places, value=-1))


def assign(costs: Tensor) -> Tensor:
    """Find a stable assignment: no cell and place would both be better off with each other.

    Args:
        costs: float [B, N, N] of cell i moving to place j, finite; overwritten.

    Returns:
        int64 [B, N], the cell that each place gets.
    """
    num_cells = costs.shape[1]
    cells = torch.arange(num_cells, device=costs.device).expand(costs.shape[:2])
    asking = torch.ones_like(cells, dtype=torch.bool)
    prices, places = torch.empty_like(costs[:, 0]), torch.empty_like(cells)
    while True:
        prices[asking], places[asking] = costs[asking].min(dim=1)
        cheapest = torch.full_like(prices, torch.inf).scatter_reduce(1, places, prices, "amin")
        candidates = torch.where(prices == cheapest.gather(1, places), cells, num_cells)  # the first of equals
        winners = torch.full_like(cells, num_cells).scatter_reduce(1, places, candidates, "amin")
        asking = winners.gather(1, places) != cells
        if not asking.any():
            return winners
        costs[asking, places[asking]] = torch.inf


def move_cells(images: Tensor, sources: Tensor, cell: tuple[int, int]) -> Tensor:
    """Show at each place the cell that moves there.

    Args:
        images: float32 [B, C, H, W].
        sources: int64 [B, h * w], the cell that each place gets.
        cell: height and width in pixels; a cell that reaches over the edge goes on with the last pixels before it.
    """
    padding = (0, -images.shape[3] % cell[1], 0, -images.shape[2] % cell[0])
    padded = F.pad(images, padding, mode="replicate")
    cells = padded.unflatten(3, (-1, cell[1])).unflatten(2, (-1, cell[0])).permute(0, 2, 4, 1, 3, 5)
    batch = torch.arange(len(images), device=images.device)[:, None]
    moved = cells.flatten(1, 2)[batch, sources].unflatten(1, cells.shape[1:3])
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(padded.shape)[:, :, : images.shape[2], : images.shape[3]]


def _squared_distance(height: int, width: int, device: torch.device) -> Tensor:
    # [h * w, h * w], 1 across the longer side.
    longest = max(height, width, 2) - 1
    rows, columns = torch.arange(height, device=device) / longest, torch.arange(width, device=device) / longest
    grid = torch.cartesian_prod(rows, columns)
    return (grid[:, None] - grid).square().sum(dim=2)
