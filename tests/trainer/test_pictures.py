"""Pictures of mixes, masks and maps, drawn to PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from serving import tiny_mixer

from samix.mixing.artefact import load_mixer
from samix.mixing.plan import generator_for
from samix.mixing.policies import cutmix, mixup, no_mixing
from samix.mixing.protocol import Mixer
from trainer.pictures.grid import Cell, Grid, Group, Mark, draw_grid
from trainer.pictures.maps import attention_cell, content_cell, draw_maps, query_points
from trainer.pictures.masks_plot import draw_masks_plot, look_at
from trainer.pictures.mixes import draw_gallery

ROOT = Path(__file__).parents[2]
GREY = torch.full((3, 8, 8), 0.5)


def grid(*cells: Cell, heading: str = "heading") -> Grid:
    groups = [Group(heading=heading, titles=["one"] * len(cells))]
    return Grid(caption="what it shows", groups=groups, blocks=[[cells]])


def pixels_of(path: Path) -> np.ndarray:
    return imread(path)[:, :, :3]


def red_ink(path: Path) -> float:
    """Share of a picture that is clearly red."""
    red, green, blue = np.moveaxis(pixels_of(path), 2, 0)
    return float(((red > 0.7) & (green < 0.35) & (blue < 0.35)).mean())


def last_row(path: Path, groups: Sequence[int]) -> list[np.ndarray]:
    """Cut the cells of the lowest row out of a grid of cells of 96 pixels."""
    pixels, left, cells = pixels_of(path)[-10 - 96 : -10], 10, []
    for count in groups:
        cells += [pixels[:, left + number * 99 : left + number * 99 + 96] for number in range(count)]
        left += count * 99 - 3 + 14
    return cells


@pytest.mark.parametrize(("side", "drawn"), [(16, 96), (28, 112), (96, 96), (224, 112)])
def test_a_picture_is_scaled_by_a_whole_number(tmp_path: Path, side: int, drawn: int):
    """A picture in one colour fills a square of whole pixels, with nothing blurred into it."""
    colour = torch.tensor([1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, side, side)

    draw_grid(tmp_path / "grid.png", grid(Cell(picture=colour)))

    exact = (pixels_of(tmp_path / "grid.png") == (1, 0, 1)).all(axis=2)
    assert exact.sum() == drawn**2
    assert exact.any(axis=0).sum() == exact.any(axis=1).sum() == drawn


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_every_pixel_arrives(tmp_path_factory: pytest.TempPathFactory, seed: int):
    """A picture can be read back from the PNG, each pixel twelve wide."""
    path = tmp_path_factory.mktemp("grids") / "grid.png"
    picture = torch.randint(0, 256, (3, 8, 8), generator=generator_for(seed)) / 255

    draw_grid(path, grid(Cell(picture=picture)))

    cell = pixels_of(path)[-10 - 96 : -10, 10 : 10 + 96]
    np.testing.assert_allclose(cell[6::12, 6::12], picture.permute(1, 2, 0), atol=2e-3)


def test_notes_and_marks_are_drawn_on_their_picture(tmp_path: Path):
    """A note lies in the lower left corner, a mark where it points."""
    cell = Cell(picture=GREY, note="0.5", marks=[Mark(text="1", x=0.75, y=0.25)])

    draw_grid(tmp_path / "grid.png", grid(cell))

    drawn = pixels_of(tmp_path / "grid.png")[-10 - 96 : -10, 10 : 10 + 96]
    touched = np.abs(drawn - 0.5).max(axis=2) > 0.01
    assert touched[-18:, :30].any()
    assert touched[24, 72]
    assert not touched[30:70, :60].any()


def test_long_names_stay_above_their_columns(tmp_path: Path):
    """A name longer than its column is wrapped and cut, rather than making the picture wider or growing without end."""
    short, long = (grid(Cell(picture=GREY), heading="x" * length) for length in (5, 500))

    draw_grid(tmp_path / "short.png", short)
    draw_grid(tmp_path / "long.png", long)

    heights, widths = zip(*(pixels_of(tmp_path / f"{name}.png").shape[:2] for name in ("short", "long")), strict=True)
    assert widths[0] == widths[1]
    assert heights[1] == heights[0] + 2 * 16


def test_mixers_stand_side_by_side(tmp_path: Path):
    """Each mixer adds a column for each lambda, each pair two rows."""
    pictures = torch.rand(4, 3, 16, 16, generator=generator_for(0))
    mixers: dict[str, Mixer] = {"mixup": mixup(), "none": no_mixing()}

    draw_gallery(tmp_path / "gallery.png", mixers, pictures, [0.25, 0.75], seed=0)

    masks = last_row(tmp_path / "gallery.png", groups=(1, 2, 2))[1:]
    np.testing.assert_allclose([mask[48, 48, 0] for mask in masks], [0.25, 0.75, 1, 1], atol=3e-3)
    assert pixels_of(tmp_path / "gallery.png").shape[1] == 10 + 5 * 96 + 2 * 3 + 2 * 14 + 10


@given(height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 1000))
def test_points_that_keep_most_and_least_are_chosen(height: int, width: int, seed: int):
    """The first point has the largest logit, the last the smallest, and all lie inside."""
    logits = torch.randn(height, width, generator=generator_for(seed))

    points = query_points(logits)

    values = [logits[y, x] for y, x in points]
    assert values[0] == logits.max()
    assert values[2] == logits.min()


def test_uniform_attention_looks_uniform():
    """Attention to everything alike is one flat colour in the middle of the scale, not stretched to a pattern."""
    almost = torch.full((4, 4), 1 / 16) + 1e-6 * torch.randn(4, 4, generator=generator_for(0))

    cell = attention_cell(almost, GREY)

    assert cell.note == "1.0x"
    assert cell.picture.flatten(1).std(dim=1).max() < 0.01
    assert cell.picture.mean() < 0.5


def test_attention_shows_where_it_peaks():
    """All weight on one of sixteen features lights its square alone."""
    weights = torch.zeros(4, 4)
    weights[1, 2] = 1

    cell = attention_cell(weights, GREY)

    bright = cell.picture.mean(dim=0) > 0.6
    assert cell.note == "16.0x"
    assert bright.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_content_is_red_where_it_draws_to_the_partner():
    """Positive content is red, negative blue, none leaves the grey picture as it is."""
    cell = content_cell(torch.tensor([[0.5, 0.0], [0.0, -2.0]]), GREY)

    red, _, blue = cell.picture
    assert cell.note == "±2"
    assert red[0, 0] > blue[0, 0]
    assert red[7, 7] < blue[7, 7]
    assert abs(red[0, 7] - blue[0, 7]) < 0.01


def test_maps_are_those_of_the_block(tmp_path: Path):
    """The second pair's row shows where its own points look in its own partner, and the mix that its mask makes."""
    mixer = load_mixer(ROOT / "mixers/samix-digits-r10.safetensors")
    pictures = torch.rand(4, 3, 16, 16, generator=generator_for(0))
    a, b = pictures[1], pictures[3]
    features = mixer.net.encoder(mixer.net.normalise(pictures))
    maps = mixer.net.block.maps(features, 0.5, torch.tensor([2, 3, 0, 1]))
    looks = maps.attention.view(4, 8, 8, 8, 8)[1]
    mask = mixer.mix(pictures, lam=0.5, partner=torch.tensor([2, 3, 0, 1])).masks[1]

    draw_maps(tmp_path / "maps.png", {"digits": mixer}, pictures, 0.5)

    cells = last_row(tmp_path / "maps.png", groups=(2, 1, 3, 2))
    expected = [attention_cell(looks[y, x], b).picture for y, x in query_points(maps.logits[1, 0])]
    for cell, picture in zip(cells[3:], [*expected, mask.expand_as(a), mask * a + (1 - mask) * b], strict=True):
        drawn = cell[3:70:6, 3::6]  # above the note
        np.testing.assert_allclose(drawn, picture.permute(1, 2, 0)[: len(drawn)], atol=5e-3)


def test_maps_of_several_mixers_fit_one_picture(tmp_path: Path):
    """Each mixer has a block of rows of its own, whatever it learnt."""
    pictures = torch.rand(4, 3, 32, 32, generator=generator_for(0))
    heights = []

    for count in (1, 2):
        draw_maps(tmp_path / "maps.png", {str(n): tiny_mixer(seed=n) for n in range(count)}, pictures, 0.5)
        heights.append(pixels_of(tmp_path / "maps.png").shape[0])

    assert heights[1] - heights[0] in range(2 * 96 + 3 + 14, 2 * 96 + 3 + 14 + 2 * 16)


@pytest.mark.parametrize(
    ("mixer", "verdict"),
    [
        (mixup(), "trivial: a constant blend"),
        (no_mixing(), "trivial: a constant blend that ignores λ"),
        (tiny_mixer(), "trivial: a constant blend that ignores λ"),
        (cutmix(), "not trivial: varies by rule"),
    ],
)
def test_the_verdict_is_in_words(mixer: Mixer, verdict: str):
    """A mixer that learnt nothing is called trivial, a policy is never called learned."""
    pictures = torch.rand(8, 3, 16, 16, generator=generator_for(0))

    look = look_at(mixer, pictures, pairs=2, seed=0)

    assert look.verdict == verdict
    assert look.masks.shape == (5, 2, 1, 16, 16)


def test_a_trivial_mixer_is_red_at_a_glance(tmp_path: Path):
    """The title over a trivial mixer is red; over others only the line of triviality is."""
    pictures = torch.rand(16, 3, 16, 16, generator=generator_for(0))
    ink = []

    for mixer in (mixup(), cutmix()):
        draw_masks_plot(tmp_path / "masks.png", {"mixer": look_at(mixer, pictures * 0, pairs=3, seed=0)})
        ink.append(red_ink(tmp_path / "masks.png"))

    assert ink[0] > 1.5 * ink[1] > 0


@pytest.mark.parametrize("count", [2, 8, 12])
def test_many_mixers_share_a_plot(tmp_path: Path, count: int):
    """Names too many for the colours, or too many to stand beside each other, are all drawn."""
    pictures = torch.rand(8, 3, 8, 8, generator=generator_for(0))
    looks = {f"policy {number}": look_at(cutmix(), pictures, pairs=1, seed=number) for number in range(count)}

    draw_masks_plot(tmp_path / "masks.png", looks)

    assert pixels_of(tmp_path / "masks.png").shape[0] > 100 * count
