"""Curves of runs, drawn from their logs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from trainer.report import Row, RunLog, read_log

_DPI = 120
_MANY_EPOCHS = 40  # from where on a mark for each would cover the line
_LAYOUT: list[Any] = [["loss", "loss", "top1"], ["lr", "speed", "wait"]]


def draw_curves(path: Path, run_log: RunLog, title: str) -> None:
    """Draw a run against its epochs: loss, accuracy, learning rate, speed and waiting.

    Rows of steps are drawn faintly under those of epochs; an epoch counted from 1 ends at its number on the axis.
    """
    steps, epochs = run_log.of("step"), run_log.of("epoch")
    figure = Figure(figsize=(10.5, 5.6), layout="constrained")
    axes: dict[str, Axes] = figure.subplot_mosaic(_LAYOUT)
    _draw_both(axes["loss"], steps, epochs, "loss", "tab:blue")
    axes["loss"].set_title("training loss: mean of each epoch, and of each row of the log")
    _draw(axes["top1"], epochs, "top1", "tab:green", percent=True)
    axes["top1"].set_title("top-1 accuracy, %")
    _draw(axes["lr"], steps or epochs, "lr", "tab:purple", is_marked=len(steps) < _MANY_EPOCHS)
    axes["lr"].set_title("learning rate")
    _draw_both(axes["speed"], steps, epochs, "images_per_s", "tab:orange")
    axes["speed"].set_title("images/s, all ranks")
    _draw_both(axes["wait"], steps, epochs, "wait_share", "tab:red", percent=True)
    axes["wait"].set_title("waiting for the mixer, % of time")
    for name in ("lr", "speed", "wait"):
        axes[name].set_ylim(0, 1.1 * axes[name].dataLim.ymax or 1)
    for each in axes.values():
        _label_epochs(each)
        each.set_xlim(0, max([1.0, *map(_place, steps), *map(_place, epochs)]) * 1.02)
    figure.suptitle(title)
    figure.savefig(path, dpi=_DPI)


def draw_comparison(path: Path, folders: Sequence[Path]) -> None:
    """Draw loss and accuracy of several finished runs into one picture; a run is named after its folder."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for folder in folders:
        epochs = [row for row in read_log(folder / "log.jsonl") if row["event"] == "epoch"]
        number = [row["epoch"] for row in epochs]
        label = f"mixing: {folder.name}"
        loss.plot(number, [row["loss"] for row in epochs], label=label, marker=".")
        accuracy.plot(number, [100 * row["top1"] for row in epochs], label=label, marker=".")
    loss.set(title="training loss (mixed labels cost more)")
    accuracy.set(title="test accuracy, %")
    for axes in (loss, accuracy):
        _label_epochs(axes)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=_DPI)


def _draw_both(
    axes: Axes, steps: Sequence[Row], epochs: Sequence[Row], name: str, colour: str, *, percent: bool = False
) -> None:
    _draw(axes, steps, name, colour, percent=percent, is_faint=True)
    _draw(axes, epochs, name, colour, percent=percent)


def _draw(
    axes: Axes,
    rows: Sequence[Row],
    name: str,
    colour: str,
    *,
    percent: bool = False,
    is_faint: bool = False,
    is_marked: bool | None = None,
) -> None:
    """Draw one field of the rows that have it."""
    rows = [row for row in rows if name in row]
    if is_marked is None:
        is_marked = not is_faint and len(rows) < _MANY_EPOCHS
    axes.plot(
        [_place(row) for row in rows],
        [(100 if percent else 1) * row[name] for row in rows],
        color=colour,
        alpha=0.35 if is_faint else 1,
        linewidth=0.8 if is_faint else 1.5,
        marker="." if is_marked else "",
    )


def _place(row: Row) -> float:
    return row["epoch"] - 1 + row["step"] / row["of"] if "step" in row else row["epoch"]


def _label_epochs(axes: Axes) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
