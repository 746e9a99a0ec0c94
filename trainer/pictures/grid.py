"""Draw a grid of small pictures with words around them.

Nothing is resampled by the plotting library: a picture is enlarged or averaged by a whole number, and the figure is as
large as its raster, so that at 100 % what looks sharp or blurred is so.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

_DPI = 100
_CELL, _GAP, _GROUP_GAP, _MARGIN, _LINE = 96, 3, 14, 10, 16  # pixels; of a cell at least, unless a grid says more
_FRAME = 0.8  # a grey: white masks would melt into the page
_LETTER = 6.7  # pixels a letter takes on average: 9 pt plain, 8 pt bold


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A numbered dot on a picture."""

    text: str
    """A character or two."""
    x: float
    """From the left edge, as a share of the side."""
    y: float
    """From the upper edge, as a share of the side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A picture in a grid."""

    picture: Tensor
    """float [3, S, S] in [0, 1], of the same side S in the whole grid."""
    note: str = ""
    """A few characters for its lower left corner."""
    marks: Sequence[Mark] = ()
    """What points at places in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Neighbouring columns under one heading."""

    heading: str
    """Empty for none."""
    titles: Sequence[str]
    """One for each column."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Cells and words."""

    caption: str
    """What the picture shows; wrapped to its width."""
    groups: Sequence[Group]
    """The columns."""
    blocks: Sequence[Sequence[Sequence[Cell]]]
    """Blocks of rows that belong together; each row holds one cell for each column."""
    cell: int = _CELL
    """Side that a picture has at least, in pixels."""


def draw_grid(path: Path, grid: Grid) -> None:
    """Write a grid as PNG."""
    cells = torch.stack(
        [torch.stack([_fit(cell.picture, grid.cell) for cell in row]) for block in grid.blocks for row in block]
    )
    side = cells.shape[-1]
    columns, width = _offsets([len(group.titles) for group in grid.groups], side, _MARGIN)
    caption = textwrap.wrap(grid.caption, int((width - _MARGIN) / _LETTER))
    headings = [_heading(group, side) for group in grid.groups]
    heading_lines = max(map(len, headings))
    top = _MARGIN + _LINE * (len(caption) + heading_lines + 2)  # an empty line, and the titles
    rows, height = _offsets([len(block) for block in grid.blocks], side, top)
    figure, axes = _canvas(_raster(cells, rows, columns, height, width))
    for number, line in enumerate(caption):
        axes.text(_MARGIN, _MARGIN + _LINE * number, line, va="top", fontsize=9)
    _write_headings(axes, grid.groups, headings, columns, side, top)
    for y, row in zip(rows, (row for block in grid.blocks for row in block), strict=True):
        for x, cell in zip(columns, row, strict=True):
            _write_on(axes, cell, x, y, side)
    figure.savefig(path, dpi=_DPI)


def _fit(picture: Tensor, least: int) -> Tensor:
    side = picture.shape[-1]
    picture = picture.float().cpu()
    if side >= least:
        return F.avg_pool2d(picture, side // least)
    zoom = -(-least // side)
    return picture.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)


def _offsets(counts: Sequence[int], side: int, start: int) -> tuple[list[int], int]:
    """Place groups of cells along one axis; returns where each cell starts, and where the figure ends."""
    offsets = []
    for count in counts:
        offsets += [start + number * (side + _GAP) for number in range(count)]
        start = offsets[-1] + side + _GROUP_GAP
    return offsets, start - _GROUP_GAP + _MARGIN


def _raster(cells: Tensor, rows: Sequence[int], columns: Sequence[int], height: int, width: int) -> Tensor:
    """Put cells [R, C, 3, S, S] on white, [height, width, 3]."""
    side = cells.shape[-1]
    canvas = torch.ones(3, height, width)
    for y, row in zip(rows, cells, strict=True):
        for x, cell in zip(columns, row, strict=True):
            canvas[:, y - 1 : y + side + 1, x - 1 : x + side + 1] = _FRAME
            canvas[:, y : y + side, x : x + side] = cell
    return canvas.permute(1, 2, 0)


def _canvas(raster: Tensor) -> tuple[Figure, Axes]:
    """Open a figure whose axes count its pixels from the upper left corner."""
    height, width = raster.shape[:2]
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(raster.numpy(), interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    axes.axis("off")
    return figure, axes


def _heading(group: Group, side: int) -> list[str]:
    width = len(group.titles) * (side + _GAP) + _GROUP_GAP
    return textwrap.wrap(group.heading, int(width / _LETTER), max_lines=3, placeholder="…")


def _write_headings(
    axes: Axes, groups: Sequence[Group], headings: Sequence[list[str]], columns: Sequence[int], side: int, top: int
) -> None:
    first = 0
    for group, lines in zip(groups, headings, strict=True):
        own = columns[first : first + len(group.titles)]
        first += len(group.titles)
        middle = (own[0] + own[-1] + side) / 2
        axes.text(middle, top - _LINE - 3, "\n".join(lines), ha="center", va="bottom", fontsize=8, fontweight="bold")
        if lines and len(own) > 1:
            axes.plot([own[0], own[-1] + side], [top - _LINE, top - _LINE], color="0.6", linewidth=0.8)
        for x, title in zip(own, group.titles, strict=True):
            axes.text(x + side / 2, top - 2, title, ha="center", va="bottom", fontsize=8)


def _write_on(axes: Axes, cell: Cell, x: int, y: int, side: int) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.2}
    if cell.note:
        axes.text(x + 3, y + side - 4, cell.note, va="bottom", fontsize=7, bbox=box)
    for mark in cell.marks:
        place = x + mark.x * side, y + mark.y * side
        axes.scatter(*place, s=90, color="white", edgecolors="black", linewidths=0.8)
        axes.text(*place, mark.text, ha="center", va="center_baseline", fontsize=7, fontweight="bold")
