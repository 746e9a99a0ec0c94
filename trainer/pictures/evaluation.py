"""Draws an evaluation: how far its confidence can be trusted, and which classes it gets wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from trainer.calibration import NUM_BINS
from trainer.evaluate import Evaluation

NUM_WORST = 5
"""Classes that are named."""

_MOST_NAMED = 40
_LONGEST_NAME = 28
_BLUE, _RED, _GREY = "tab:blue", "tab:red", "0.75"
_AS_IT_IS: dict[str, Any] = {"parse_math": False}  # a dollar in a name begins no formula
_MEAN: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}


def worst_classes(evaluation: Evaluation, count: int = NUM_WORST) -> list[int]:
    """Find the classes with the lowest top-1 among those that have samples, worst first."""
    rated = [
        (top1, number)
        for number in range(len(evaluation.class_samples))
        if (top1 := evaluation.class_top1(number)) is not None
    ]
    return [number for _, number in sorted(rated)[:count]]


def draw_evaluation(path: Path, evaluation: Evaluation, names: Sequence[str], title: str) -> None:
    """Draw the reliability diagram over the share of samples in each bin, and the accuracies of all classes.

    Args:
        path: of the PNG.
        evaluation: what to draw.
        names: of the classes, by number.
        title: over all.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplot_mosaic(
        [["reliability", "classes"], ["shares", "classes"]], height_ratios=[3, 1], width_ratios=[1, 1.4]
    )
    _draw_reliability(axes["reliability"], evaluation)
    _draw_shares(axes["shares"], evaluation)
    _draw_classes(axes["classes"], evaluation, names)
    figure.suptitle(title, **_AS_IT_IS)
    figure.savefig(path, dpi=120)


def _draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    left, filled = np.arange(NUM_BINS) / NUM_BINS, [each for each in evaluation.bins if each.samples]
    accuracy = [each.accuracy if each.samples else np.nan for each in evaluation.bins]
    axes.bar(left, accuracy, 1 / NUM_BINS, align="edge", color=_BLUE, alpha=0.5, edgecolor="white")
    axes.vlines(
        [each.confidence for each in filled],
        [each.accuracy for each in filled],
        [each.confidence for each in filled],
        color=_RED,
        label="gap",
    )
    axes.plot([each.confidence for each in filled], [each.accuracy for each in filled], ".", color=_BLUE)
    axes.plot([0, 1], [0, 1], linestyle="--", color="black", linewidth=1, label="as confident as right")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    axes.set_title(f"calibration error {evaluation.calibration_error:.1%}")
    axes.tick_params(labelbottom=False)
    axes.legend(loc="upper left", fontsize=8)
    axes.grid(alpha=0.3)


def _draw_shares(axes: Axes, evaluation: Evaluation) -> None:
    left = np.arange(NUM_BINS) / NUM_BINS
    shares = [each.samples / evaluation.samples for each in evaluation.bins]
    axes.bar(left, shares, 1 / NUM_BINS, align="edge", color=_GREY, edgecolor="white")
    axes.set(xlim=(0, 1), xlabel="confidence in the class ranked first", ylabel="samples")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)


def _draw_classes(axes: Axes, evaluation: Evaluation, names: Sequence[str]) -> None:
    order = worst_classes(evaluation, len(names))
    top1 = [evaluation.class_top1(number) or 0.0 for number in order]
    colours = [_RED if place < NUM_WORST and share < evaluation.top1 else _BLUE for place, share in enumerate(top1)]
    if len(order) <= _MOST_NAMED:
        axes.barh(range(len(order)), top1, color=colours)
        axes.set_yticks(range(len(order)), [_short(names[number]) for number in order], fontsize=8, **_AS_IT_IS)
        axes.set(xlim=(0, 1), xlabel="top-1", ylim=(len(order) - 0.5, -0.5))
        axes.axvline(evaluation.top1, **_MEAN)
        axes.grid(alpha=0.3, axis="x")
    else:
        axes.bar(range(len(order)), top1, 1.0, color=colours)
        axes.set(ylim=(0, 1), ylabel="top-1", xlim=(-0.5, len(order) - 0.5), xlabel="classes, lowest first")
        axes.set_xticks([])
        axes.axhline(evaluation.top1, **_MEAN)
        axes.grid(alpha=0.3, axis="y")
        _name_worst(axes, order[:NUM_WORST], top1, names)
    axes.set_title(f"top-1 of {len(order)} classes; of all samples {evaluation.top1:.1%}")


def _name_worst(axes: Axes, order: Sequence[int], top1: Sequence[float], names: Sequence[str]) -> None:
    lines = [f"{share:6.1%}  {_short(names[number])}" for number, share in zip(order, top1, strict=False)]
    look: dict[str, Any] = {"family": "monospace", "fontsize": 8, "color": _RED, **_AS_IT_IS}
    box = {"facecolor": "white", "edgecolor": _RED, "alpha": 0.9}
    axes.text(0.02, 0.98, "\n".join(lines), transform=axes.transAxes, va="top", bbox=box, **look)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
