"""The graph cut of Puzzle Mix: the labelling of a grid of blocks with the least energy.

The paper approximates it by alpha-beta swaps. But its smoothness is quadratic in the difference of two labels, hence
convex, and one cut of a graph with a layer for each step between labels finds the minimum of such an energy exactly
(Ishikawa, 2003). The grids of a whole batch are cut at once, as parts of one graph.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy

_INFINITE = 2**31 - 1  # SciPy's capacities are int32

_Edges = tuple[npt.NDArray, npt.NDArray, npt.NDArray]
"""From nodes, to nodes, and the cost of having the first above its label while the second is not."""


def least_labels(costs: Tensor, below: Tensor, beside: Tensor) -> Tensor:
    """Minimise sum_i costs[l_i, i] + sum_ij w_ij (l_i - l_j)^2 over the labels l of each grid.

    Args:
        costs: float [B, L, h, w], finite: what it costs to give a block the label 0..L-1.
        below: float [B, h - 1, w] >= 0, weight w between a block and the one below it.
        beside: float [B, h, w - 1] >= 0, weight w between a block and the one to its right.

    Returns:
        int64 [B, h, w] on the CPU; costs count to about eight digits of the largest.
    """
    steps, below_, beside_ = (tensor.detach().double().cpu().numpy() for tensor in (costs.diff(dim=1), below, beside))
    # Node (b, k, y, x) will lie on the source's side if the label of block (y, x) is above k.
    nodes = np.arange(steps.size).reshape(steps.shape)
    edges = [*_label_edges(nodes, steps)]
    for first, second, weights in (
        (nodes[:, :, :-1], nodes[:, :, 1:], below_),
        (nodes[..., :-1], nodes[..., 1:], beside_),
    ):
        edges += _smoothness_edges(first, second, weights)
    return from_numpy(_source_side(edges, nodes.size, num_layers=steps.shape[1])[nodes].sum(axis=1))


def _label_edges(nodes: npt.NDArray, steps: npt.NDArray) -> Iterator[_Edges]:
    source, sink = (np.full_like(nodes, nodes.size + end) for end in (0, 1))
    yield nodes, sink, steps.clip(min=0)
    yield source, nodes, (-steps).clip(min=0)
    yield nodes[:, 1:], nodes[:, :-1], np.full(nodes[:, 1:].shape, np.inf)  # above k means above all smaller labels


def _smoothness_edges(first: npt.NDArray, second: npt.NDArray, weights: npt.NDArray) -> Iterator[_Edges]:
    # d^2 counts every pair of steps that lie between two labels: once a step with itself, twice one with a lower one.
    for upper in range(first.shape[1]):
        for lower in range(upper + 1):
            capacity = weights if upper == lower else 2 * weights
            yield first[:, upper], second[:, lower], capacity
            yield second[:, upper], first[:, lower], capacity


def _source_side(edges: list[_Edges], num_nodes: int, *, num_layers: int) -> npt.NDArray:
    # Which nodes lie on the source's side of a least cut, bool [num_nodes + 2]: source and sink come last.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    tails, heads, costs = (np.concatenate([part.ravel() for part in column]) for column in zip(*edges, strict=True))
    capacities = _to_integers(costs, num_nodes, num_layers, tails, heads)
    graph = csr_array((capacities, (tails, heads)), shape=(num_nodes + 2, num_nodes + 2))
    residual = graph - maximum_flow(graph, num_nodes, num_nodes + 1).flow
    residual.eliminate_zeros()
    reached = breadth_first_order(residual, num_nodes, return_predecessors=False)
    is_source_side = np.zeros(num_nodes + 2, bool)
    is_source_side[reached] = True
    return is_source_side


def _to_integers(
    costs: npt.NDArray, num_nodes: int, num_layers: int, tails: npt.NDArray, heads: npt.NDArray
) -> npt.NDArray:
    # An infinite edge carries what leaves its block through the finite edges of all layers, and must not be full.
    finite = np.where(np.isinf(costs), 0, costs)
    at_nodes = np.bincount(tails, finite, num_nodes + 2) + np.bincount(heads, finite, num_nodes + 2)
    largest = num_layers * at_nodes[:num_nodes].max() or 1.0
    return np.minimum(costs * (_INFINITE / largest), _INFINITE).astype(np.int32)
