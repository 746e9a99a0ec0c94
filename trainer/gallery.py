"""Draw what a mixer does: mixed pairs with their masks over lambda, and whether masks follow lambda."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer
from samix.mixing.batch import as_unit_float
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for
from services.cli import program
from services.config import parse_config
from services.logs import setup_logging
from services.shards.augment import CentreCrop
from services.shards.decode import open_picture
from services.shards.index import open_shards
from services.shards.reader import SampleReader
from trainer.quality import MaskQuality, mask_quality
from trainer.world import DeviceKind, choose_device

log = logging.getLogger(__name__)

_QUALITY_IMAGES = 256
_CELL, _GAP, _HEAD, _DPI = 64, 2, 40, 100  # pixels; dots per inch


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """Draw a grid of mixed pairs (rows) over lambda (columns), with their masks."""

    mixer: Path
    """The mixer's .safetensors file."""
    data: str
    """Shards with pictures: a path, a glob or a brace pattern (quote it)."""
    out: Path
    """The PNG to write."""
    masks_plot: Path | None = None
    """Another PNG: mean and spread of masks against lambda, where a trivial mixer shows at a glance."""
    pairs: int = 6
    """Rows of the grid."""
    lams: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    """Columns of the grid: the share of the left picture."""
    image_size: int = 0
    """Side of the pictures in pixels; 0 takes the one the mixer was trained on."""
    seed: int = 0
    """Chooses the pictures."""
    device: DeviceKind = "auto"
    """Where the mixer runs."""

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise ConfigError(f"pairs must be at least 1, got {self.pairs}")
        if not self.lams or not all(0 <= lam <= 1 for lam in self.lams):
            raise ConfigError(f"lams must lie in [0, 1], got {self.lams}")
        for path in filter(None, (self.out, self.masks_plot)):
            if path.suffix.lower() != ".png":
                raise ConfigError(f"pictures are written as .png, got {str(path)!r}")


@program
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `samix gallery --mixer FILE --data GLOB --out PNG`."""
    config = parse_config(GalleryConfig, "gallery", argv)
    setup_logging()
    mixer = load_mixer(config.mixer, str(choose_device(config.device)))
    image_size = config.image_size or mixer.spec.image_size
    mixer.spec.check_size(image_size, image_size)
    pictures = _pictures(config, image_size)
    draw_gallery(config.out, mixer, pictures[: 2 * config.pairs], config.lams)
    log.info("gallery", extra={"path": str(config.out), "mixer": mixer.name, "version": mixer.version})
    if config.masks_plot is not None:
        quality = mask_quality(mixer, pictures, seed=config.seed)
        draw_masks_plot(config.masks_plot, quality, mixer.name)
        figures = {"lam_error": round(quality.mean_error, 4), "spread": round(quality.mean_spread, 4)}
        log.info("masks_plot", extra={"path": str(config.masks_plot), **figures})
    return 0


def draw_gallery(path: Path, mixer: FrozenMixer, pictures: Tensor, lams: Sequence[float]) -> None:
    """Draw pairs: the left picture, mixes and masks at each lambda, the right picture.

    Args:
        path: the PNG.
        mixer: what mixes.
        pictures: uint8 [2 P, 3, S, S]; picture i is paired with picture P + i.
        lams: share of the left picture in each column.
    """
    pairs = len(pictures) // 2
    partner = torch.arange(2 * pairs).roll(-pairs)
    mixes = [mixer.mix(pictures, lam=lam, partner=partner) for lam in lams]
    rows = []
    for row in range(pairs):
        blank = torch.ones_like(mixes[0].images[row])
        left, right = (as_unit_float(pictures[side]) for side in (row, pairs + row))
        rows.append([left, *(mixed.images[row] for mixed in mixes), right])
        rows.append([blank, *(mixed.masks[row].expand_as(blank) for mixed in mixes), blank])
    titles = ["left", *(f"λ = {lam:g}" for lam in lams), "right"]
    draw_grid(path, rows, titles, f"{mixer.name} {mixer.version}: mixes, below each its mask (white: left picture)")


def draw_grid(path: Path, rows: Sequence[Sequence[Tensor]], titles: Sequence[str], caption: str) -> None:
    """Draw pictures float [3, S, S] in [0, 1] as one raster, magnified by a whole number so that pixels stay sharp."""
    side = rows[0][0].shape[-1]
    factor = max(1, round(_CELL / side))
    cells = (
        torch.stack([torch.stack(list(row)) for row in rows])
        .repeat_interleave(factor, -1)
        .repeat_interleave(factor, -2)
    )
    cells = F.pad(cells, (_GAP,) * 4, value=1.0)
    step = side * factor + 2 * _GAP
    raster = cells.permute(0, 3, 1, 4, 2).reshape(len(rows) * step, len(titles) * step, 3)
    height, width = raster.shape[:2]
    figure = Figure(figsize=(width / _DPI, (height + _HEAD) / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, height / (height + _HEAD)))
    axes.imshow(raster.cpu().numpy(), interpolation="nearest")
    axes.axis("off")
    for column, title in enumerate(titles):
        axes.text((column + 0.5) * step, -6, title, ha="center", va="bottom", fontsize=8)
    figure.text(0.5, 0.995, caption, ha="center", va="top", fontsize=8)
    figure.savefig(path)


def draw_masks_plot(path: Path, quality: MaskQuality, name: str) -> None:
    """Plot mean masks and their spatial spread against lambda."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    mean, spread = figure.subplots(1, 2)
    mean.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="mean = λ")
    mean.errorbar(quality.lam, quality.mean, yerr=quality.error, marker="o", capsize=2, label="mask, ± mean error")
    mean.set(xlabel="λ", ylabel="mean of the mask", xlim=(0, 1), ylim=(0, 1))
    mean.legend(fontsize=8)
    spread.bar(quality.lam, quality.spread, width=0.07)
    spread.axhline(0.02, color="tab:red", linestyle=":", label="trivial below")
    spread.set(xlabel="λ", ylabel="spatial standard deviation", xlim=(0, 1))
    spread.legend(fontsize=8)
    figure.suptitle(name, fontsize=9)
    figure.savefig(path, dpi=100)


def _pictures(config: GalleryConfig, image_size: int) -> Tensor:
    shards = open_shards(config.data)
    wanted = max(2 * config.pairs, _QUALITY_IMAGES if config.masks_plot else 0)
    if shards.total < 2 * config.pairs:
        raise ConfigError(f"{config.pairs} pairs need {2 * config.pairs} pictures, {config.data} has {shards.total}")
    positions = torch.randperm(shards.total, generator=generator_for(config.seed))[:wanted].tolist()
    crop, rng = CentreCrop(size=image_size, resize=image_size), np.random.default_rng(config.seed)
    with SampleReader(shards) as reader:
        pixels = [crop(open_picture(reader.read(position)), rng) for position in positions]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
