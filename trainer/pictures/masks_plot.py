"""Draw mean and spread of masks against lambda, some masks beside them, and say in words whether they are trivial.

The spread has one fixed scale, up to the 0.5 of a mask in pure black and white: on a scale of its own a mixer that
learnt nothing would look like one that did.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from samix.client.remote import RemoteMixer
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer
from samix.mixing.protocol import Mixer
from trainer.quality import TRIVIAL_SPREAD, MaskQuality, mask_quality, masks_over

EXAMPLE_LAMS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where masks are shown."""
_LAM_LABELS = tuple(f"λ = {lam:g}" for lam in EXAMPLE_LAMS)

_POLICY_IMAGES = 64  # a policy mixes pair by pair
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
_ALARM = "tab:red"  # what no mixer is drawn in
_FRAME = 0.8  # a grey: white masks would melt into the page
_DPI = 100
_CELL = 64  # pixels a picture has at least, so that frames are equally thin around all
_STRIP_WIDTH, _PLOT_WIDTH, _PLOT_HEIGHT = 5.2, 3.8, 3.4  # inches


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskLook:
    """What one mixer's masks are like."""

    quality: MaskQuality
    """Figures over many pictures."""
    is_learned: bool
    """Whether the masks come from weights rather than from a rule."""
    pairs: Tensor
    """float32 [2, P, 3, S, S] in [0, 1]: pictures, and their partners."""
    masks: Tensor
    """float32 [L, P, 1, S, S] in [0, 1]: the share of the first picture, at each of EXAMPLE_LAMS."""

    @property
    def verdict(self) -> str:
        """Say in words what the figures mean."""
        if self.quality.is_trivial:
            return "trivial: a constant blend" + (" that ignores λ" if self.quality.ignores_lam else "")
        if self.quality.ignores_lam:
            return "not usable: masks vary, but ignore λ"
        return "learned" if self.is_learned else "not trivial: varies by rule"

    @property
    def is_sound(self) -> bool:
        """Whether masks both vary over a picture and follow lambda."""
        return not (self.quality.is_trivial or self.quality.ignores_lam)


def look_at(mixer: Mixer, pictures: Tensor, *, pairs: int, seed: int) -> MaskLook:
    """Measure the masks of a mixer, and keep some.

    Args:
        mixer: a learned mixer, or a policy.
        pictures: uint8, or float in [0, 1], [B, 3, S, S], at least 2 * pairs.
        pairs: how many pairs to keep.
        seed: draws partners, and what a policy draws.
    """
    is_learned = isinstance(mixer, FrozenMixer | RemoteMixer)
    quality = mask_quality(mixer, pictures if is_learned else pictures[:_POLICY_IMAGES], seed=seed)
    shown = pictures[: 2 * pairs]
    masks = list(masks_over(mixer, shown, torch.arange(2 * pairs).roll(-pairs), EXAMPLE_LAMS, seed=seed))
    return MaskLook(
        quality=quality,
        is_learned=is_learned,
        pairs=as_unit_float(shown).unflatten(0, (2, pairs)).cpu(),
        masks=torch.stack(masks)[:, :pairs].cpu(),
    )


def draw_masks_plot(path: Path, looks: Mapping[str, MaskLook]) -> None:
    """Plot the masks of some mixers, by name, as PNG."""
    rows, columns = (1, 2) if len(looks) <= 3 else (2, 1)  # many strips leave room below each other
    cell = _STRIP_WIDTH / (2 + len(EXAMPLE_LAMS))
    strips_height = sum(0.35 + cell * look.pairs.shape[1] for look in looks.values())
    height = 0.5 + max(rows * _PLOT_HEIGHT, strips_height)
    figure = Figure(figsize=(columns * _PLOT_WIDTH + _STRIP_WIDTH, height), layout="constrained")
    widths = (columns * _PLOT_WIDTH, _STRIP_WIDTH)
    plots, strips = figure.subfigures(1, 2, squeeze=False, width_ratios=widths)[0]
    _draw_curves(plots, looks, (rows, columns))
    _draw_strips(strips, looks)
    _draw_title(figure, looks)
    figure.savefig(path, dpi=_DPI)


def _draw_curves(figure: SubFigure, looks: Mapping[str, MaskLook], shape: tuple[int, int]) -> None:
    mean, spread = figure.subplots(*shape)
    for look, colour in zip(looks.values(), cycle(_COLOURS)):
        quality = look.quality
        _curve(mean, quality.lam, quality.mean, quality.mean_deviation, colour)
        _curve(spread, quality.lam, quality.spread, quality.spread_deviation, colour)
    mean.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="mean = λ")
    mean.fill_between([0], 0, 0, color="0.5", alpha=0.3, lw=0, label="± deviation between pairs")
    mean.legend(fontsize=8, loc="lower right")
    mean.set(title="Do the masks follow λ?", ylabel="mean of a mask", ylim=(0, 1))
    spread.axhspan(0, TRIVIAL_SPREAD, color=_ALARM, alpha=0.25, linewidth=0)
    spread.axhline(TRIVIAL_SPREAD, color=_ALARM, linewidth=1)
    spread.text(0.02, TRIVIAL_SPREAD + 0.005, f"trivial below {TRIVIAL_SPREAD:g}", fontsize=8, color=_ALARM)
    spread.set(title="Do they vary over the picture?", ylabel="spatial standard deviation of a mask", ylim=(0, 0.52))
    for axes in (mean, spread):
        axes.set(xlabel="λ", xlim=(0, 1))


def _curve(axes: Axes, lam: Sequence[float], centre: Sequence[float], deviation: Sequence[float], colour: str) -> None:
    axes.fill_between(lam, np.subtract(centre, deviation), np.add(centre, deviation), color=colour, alpha=0.18, lw=0)
    axes.plot(lam, centre, color=colour, marker="o", markersize=4)


def _draw_strips(figure: SubFigure, looks: Mapping[str, MaskLook]) -> None:
    ratios = [look.pairs.shape[1] for look in looks.values()]
    grid = figure.subplots(len(looks), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for (name, look), axes, colour in zip(looks.items(), grid, cycle(_COLOURS)):
        cells = torch.cat([look.pairs, look.masks.expand(-1, -1, 3, -1, -1)])  # [2 + L, P, 3, S, S]
        zoom = -(-_CELL // cells.shape[-1])
        large = cells.repeat_interleave(zoom, -1).repeat_interleave(zoom, -2)
        framed = F.pad(large, (max(1, large.shape[-1] // 64),) * 4, value=_FRAME)
        step = framed.shape[-1]
        axes.imshow(framed.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1).numpy(), interpolation="nearest")
        axes.set_xticks([(number + 0.5) * step for number in range(len(cells))], ["a", "b", *_LAM_LABELS], fontsize=8)
        axes.tick_params(bottom=False, left=False, labelleft=False, pad=1)
        axes.set_frame_on(False)
        title = f"{name}: {look.verdict}" if len(looks) > 1 else "some pairs and their masks, white where 'a' stays"
        axes.set_title(title, loc="left", fontsize=9, color=colour, pad=3)


def _draw_title(figure: Figure, looks: Mapping[str, MaskLook]) -> None:
    if len(looks) > 1:
        unsound = [name for name, look in looks.items() if not look.is_sound]
        figure.suptitle(f"Masks, white where 'a' stays; trivial or not usable: {', '.join(unsound) or 'no mixer'}")
        return
    ((name, look),) = looks.items()
    figures = f"spatial deviation {look.quality.mean_spread:.3f}, |mean - λ| {look.quality.mean_error:.3f}"
    colour = "black" if look.is_sound else _ALARM
    figure.suptitle(f"{name}: {look.verdict} ({figures})", color=colour, fontweight="bold")
