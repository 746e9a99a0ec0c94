"""PuzzleMix: the objective, its graph cut and the transport."""

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.policies import PuzzleSettings, hand_crafted, puzzlemix
from samix.mixing.policies.puzzle_cut import least_labels
from samix.mixing.policies.puzzle_seams import Seams
from samix.mixing.policies.puzzle_transport import assign, move_cells, transport


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def energies(labels: np.ndarray, costs: Tensor, below: Tensor, beside: Tensor) -> np.ndarray:
    """Sum up the energy of each labelling [M, h, w], term by term: [M]."""
    rows, columns = np.indices(labels.shape[1:])
    unary = costs.numpy()[labels, rows, columns].sum(axis=(1, 2))
    vertical = (below.numpy() * np.diff(labels, axis=1) ** 2).sum(axis=(1, 2))
    return unary + vertical + (beside.numpy() * np.diff(labels, axis=2) ** 2).sum(axis=(1, 2))


def all_labellings(num_labels: int, height: int, width: int) -> np.ndarray:
    """List every labelling of a grid: int [M, h, w]."""
    choices = itertools.product(range(num_labels), repeat=height * width)
    return np.array(list(choices)).reshape(-1, height, width)


@settings(deadline=None, max_examples=60)
@example(seed=155, shape=(5, 1, 3), smoothness=0.0)  # fills an edge that only bounds the whole column
@given(
    seed=st.integers(0, 2**32),
    shape=st.sampled_from([(2, 2, 2), (2, 3, 3), (2, 1, 5), (3, 2, 2), (3, 2, 3), (4, 2, 2), (5, 1, 3), (2, 1, 1)]),
    smoothness=st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.4, 5.0]),
)
def test_the_cut_finds_the_least_energy(seed: int, shape: tuple[int, int, int], smoothness: float) -> None:
    """Among all labellings of each grid of a batch none has less energy than the one that is found."""
    num_labels, height, width = shape
    costs = rand(4, num_labels, height, width, seed=seed) - 0.5
    below = smoothness * rand(4, height - 1, width, seed=seed + 1)
    beside = smoothness * rand(4, height, width - 1, seed=seed + 2)

    found = least_labels(costs, below, beside).numpy()

    labellings = all_labellings(num_labels, height, width)
    for grid, terms in zip(found, zip(costs, below, beside, strict=True), strict=True):
        assert energies(grid[None], *terms)[0] == pytest.approx(energies(labellings, *terms).min(), abs=1e-6)


def test_the_cut_copes_with_costs_of_any_size() -> None:
    """Costs of 0 everywhere, or hugely different ones, neither overflow nor divide by 0."""
    zeros, below, beside = torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2), torch.zeros(1, 2, 1)
    forced = zeros.clone()
    forced[:, 1] = 1e6

    assert least_labels(zeros, below, beside).shape == (1, 2, 2)
    assert (least_labels(forced, below + 1e-3, beside + 1e-3) != 1).all()


def meeting_pixels(mask: np.ndarray, own: Tensor, theirs: Tensor, block: int) -> float:
    """Sum up, over all borders of blocks, the mean difference of the pixels that meet there under a mask of 0 and 1."""
    shown = torch.where(
        torch.from_numpy(mask).repeat_interleave(block, 0).repeat_interleave(block, 1) == 1, own, theirs
    )
    total = 0.0
    for at in range(block, shown.shape[1], block):
        total += (shown[:, at - 1] - shown[:, at]).abs().mean(dim=0).view(-1, block).mean(dim=1).sum().item()
    for at in range(block, shown.shape[2], block):
        total += (shown[:, :, at - 1] - shown[:, :, at]).abs().mean(dim=0).view(-1, block).mean(dim=1).sum().item()
    return total


def test_seams_cost_what_the_pixels_that_meet_differ() -> None:
    """Under every mask the three terms of the seams sum up to the differences at the borders, up to one constant."""
    images, partner = rand(2, 3, 9, 6), torch.tensor([1, 0])

    seams = Seams.between(images, partner, (3, 3), depth_px=1)

    gaps = [
        (torch.from_numpy(mask) * seams.of_showing[0]).sum().item()
        + energies(mask[None], torch.zeros(2, 3, 2), seams.below[0], seams.beside[0])[0]
        - meeting_pixels(mask, images[0], images[1], block=3)
        for mask in all_labellings(2, 3, 2)
    ]
    assert max(gaps) - min(gaps) < 1e-5


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("heat_seed", range(6))
def test_the_mask_minimises_the_objective_of_the_paper(lam: float, heat_seed: int) -> None:
    """On 2 x 2 blocks the mask is the one of 16 that the objective, written out, likes best."""
    images, block = rand(2, 3, 16, 16), 8
    sums = rand(2, 2, 2, seed=heat_seed) ** 3
    sums = sums / sums.sum(dim=(1, 2), keepdim=True)
    heat = sums.repeat_interleave(block, 1).repeat_interleave(block, 2)
    chosen = PuzzleSettings(num_labels=2, seam_px=1, moves_cells=False)

    mixed = puzzlemix(saliency=lambda _images, _labels: heat, settings=chosen).mix(
        images,
        seed=1,
        lam=lam,
        partner=torch.tensor([1, 0]),  # seed 1 draws 2 blocks a side
    )

    def objective(mask: np.ndarray) -> float:
        z = torch.from_numpy(mask)
        shown = (z * sums[0] + (1 - z) * sums[1]).sum().item()
        smoothness = energies(mask[None], torch.zeros(2, 2, 2), torch.ones(1, 2), torch.ones(2, 1))[0]
        prior = sum(np.log(lam if share else 1 - lam) for share in mask.flat)
        seams = meeting_pixels(mask, images[0], images[1], block)
        return -shown + 1.2 / (2 * 16) * (smoothness + 0.5 * seams) - 0.2 / 4 * prior

    best = min(all_labellings(2, 2, 2), key=objective)
    assert mixed.masks[0, 0, ::block, ::block].tolist() == best.tolist()


def test_shares_are_halves_and_follow_lam() -> None:
    """Blocks hold 0, 1/2 or 1; a larger lam gives image i more of the picture."""
    images = rand(16, 3, 32, 32)

    shares = [puzzlemix().mix(images, seed=1, lam=lam) for lam in (0.1, 0.5, 0.9)]

    assert all(set(mixed.masks.unique().tolist()) <= {0.0, 0.5, 1.0} for mixed in shares)
    means = [mixed.lam.mean().item() for mixed in shares]
    assert means == sorted(means)
    assert means[0] < 0.2
    assert means[2] > 0.8


def test_every_number_of_blocks_is_drawn() -> None:
    """Seeds draw 2, 4, 8 and 16 blocks a side."""
    images = rand(2, 3, 32, 32)
    heat = rand(2, 16, 16, seed=1).repeat_interleave(2, 1).repeat_interleave(2, 2) ** 8
    mixer = puzzlemix(
        saliency=lambda _images, _labels: heat, settings=PuzzleSettings(num_labels=2, beta=1e-6, moves_cells=False)
    )

    drawn = set()
    for seed in range(24):
        masks = mixer.mix(images, seed=seed, lam=0.5, partner=torch.tensor([1, 0])).masks
        edges = masks[:, 0].diff(dim=2).abs().sum(dim=(0, 1)).nonzero().flatten() + 1
        drawn.add(32 // int(np.gcd.reduce([*edges.tolist(), 32])))

    assert drawn == {2, 4, 8, 16}


def naive_assignment(costs: np.ndarray) -> list[int]:
    """Let cells propose one after the other (Gale and Shapley, 1962); the order does not matter for the outcome."""
    num_cells, asked, holder = len(costs), [0] * len(costs), [-1] * len(costs)
    wishes = np.argsort(costs, axis=1, kind="stable")
    free = list(range(num_cells))
    while free:
        cell = free.pop()
        place = int(wishes[cell, asked[cell]])
        asked[cell] += 1
        if holder[place] < 0 or costs[cell, place] < costs[holder[place], place]:
            cell, holder[place] = holder[place], cell
        if cell >= 0:
            free.append(cell)
    return holder


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), num_cells=st.integers(1, 12))
def test_the_assignment_is_that_of_deferred_acceptance(seed: int, num_cells: int) -> None:
    """Asking all at once in a batch ends where asking one by one does, at a permutation."""
    costs = rand(3, num_cells, num_cells, seed=seed)

    sources = assign(costs.clone())

    assert sources.tolist() == [naive_assignment(matrix) for matrix in costs.numpy()]
    assert (sources.sort(dim=1).values == torch.arange(num_cells)).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 6), width=st.integers(1, 6), zeros=st.booleans())
def test_transport_permutes_cells(seed: int, height: int, width: int, zeros: bool) -> None:
    """Nothing is lost or shown twice, ties included; and nothing moves where all or nothing is wanted."""
    saliency = torch.zeros(3, height, width) if zeros else rand(3, height, width, seed=seed)
    wanted = rand(3, height, width, seed=seed + 1) < torch.tensor([2.0, -1.0, 0.5]).view(3, 1, 1)

    sources = transport(saliency / saliency.sum(dim=(1, 2), keepdim=True).clamp(min=1), wanted, 0.8)

    identity = torch.arange(height * width)
    assert (sources[:2] == identity).all()
    assert (sources.sort(dim=1).values == identity).all()


def test_a_salient_cell_moves_into_the_mask_if_it_is_near() -> None:
    """A salient cell moves to the nearest wanted place; with a higher price of distance it stays."""
    saliency = torch.zeros(1, 4, 4)
    saliency[0, 1, 0] = 1
    wanted = torch.zeros(1, 4, 4, dtype=torch.bool)
    wanted[0, :, 2:] = True

    cheap, dear = (transport(saliency, wanted, price)[0].view(4, 4) for price in (0.8, 4.0))

    assert cheap[1, 2] == 4  # the cell of row 1, column 0
    assert cheap[1, 0] == 6  # whose place the displaced cell takes or any other; here the nearest free one
    assert (dear == torch.arange(16).view(4, 4)).all()


def test_transport_is_exact_under_autocast() -> None:
    """The autocast region of a training step does not round costs, so the same cells move."""
    saliency, wanted = rand(8, 8, 8) ** 8, rand(8, 8, 8, seed=1) < 0.5
    saliency = saliency / saliency.sum(dim=(1, 2), keepdim=True)
    plain = transport(saliency, wanted, 0.8)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = transport(saliency, wanted, 0.8)

    assert torch.equal(plain, inside)
    assert (plain != torch.arange(64)).any()


@pytest.mark.parametrize("size", [(8, 12), (7, 10), (1, 1)])
def test_cells_move_as_they_are_told(size: tuple[int, int]) -> None:
    """Each place shows its source cell; beyond the edge a cell goes on with its last pixels."""
    height, width = size
    rows, columns = -(-height // 4), -(-width // 3)
    images = rand(2, 3, height, width)
    sources = torch.stack([torch.randperm(rows * columns, generator=torch.Generator().manual_seed(s)) for s in (0, 1)])

    moved = move_cells(images, sources, (4, 3))

    for b, y, x in np.ndindex(2, height, width):
        source = int(sources[b, y // 4 * columns + x // 3])
        from_y = min(source // columns * 4 + y % 4, height - 1)
        from_x = min(source % columns * 3 + x % 3, width - 1)
        assert torch.equal(moved[b, :, y, x], images[b, :, from_y, from_x])


def test_transport_shows_more_of_what_is_salient() -> None:
    """Masks are the same with and without transport, but with it more saliency of both images ends up in the mix."""
    heat, partner = (rand(8, 8, 8) ** 8).repeat_interleave(4, 1).repeat_interleave(4, 2), torch.arange(8).roll(1)
    images = heat[:, None].expand(-1, 3, -1, -1)  # so that the brightness of a mix is the saliency it shows

    in_place, moved = (
        puzzlemix(saliency=lambda _images, _labels: heat, settings=PuzzleSettings(num_labels=2, moves_cells=moves)).mix(
            images, seed=3, lam=0.5, partner=partner
        )
        for moves in (False, True)
    )

    assert torch.equal(in_place.masks, moved.masks)
    assert moved.images.mean() > 1.05 * in_place.images.mean()


def test_without_scipy_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the package of the graph cut is missing, making the policy says what to install."""
    monkeypatch.setitem(sys.modules, "scipy", None)

    with pytest.raises(ConfigError, match=r"pip install 'samix-service\[puzzlemix\]'"):
        hand_crafted("puzzlemix")


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"num_labels": 1}, "num_labels must lie in 2..16, got 1; the paper's is 3"),
        ({"gamma": 1.5}, "gamma must lie in 0..1, got 1.5"),
        ({"beta": 0.0}, "beta must be positive, got 0.0"),
        ({"eta": float("nan")}, "eta must be positive, got nan"),
        ({"cell_px": 0}, "cell_px must be positive, got 0"),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float], complaint: str) -> None:
    """Settings are refused when they are made."""
    with pytest.raises(ConfigError, match=complaint):
        PuzzleSettings(**wrong)  # type: ignore[arg-type]
