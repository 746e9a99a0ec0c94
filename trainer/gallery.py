"""Draw what mixers do: mixed pairs with their masks, the maps behind them, and whether masks follow lambda."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samix.credentials import Credentials
from samix.errors import ConfigError
from samix.mixing.frozen import FrozenMixer
from samix.mixing.plan import generator_for
from samix.mixing.policies import PolicyName, hand_crafted
from samix.mixing.protocol import Mixer
from services.cli import program
from services.config import parse_config
from services.logs import setup_logging
from services.shards.augment import CentreCrop
from services.shards.decode import open_picture
from services.shards.index import open_shards
from services.shards.reader import SampleReader
from trainer.learned import LearnedMixer, open_file, open_served
from trainer.pictures.maps import draw_maps
from trainer.pictures.masks_plot import draw_masks_plot, look_at
from trainer.pictures.mixes import draw_gallery
from trainer.world import DeviceKind, choose_device

log = logging.getLogger(__name__)

_SWEEP = (0.1, 0.3, 0.5, 0.7, 0.9)
_QUALITY_IMAGES = 256
_EXAMPLE_PAIRS = 3
_LARGEST_OF_DATA = 224  # pixels: more would cost time and show no more


@dataclass(frozen=True, kw_only=True)
class GalleryConfig(Credentials):
    """Draw mixed pairs and their masks over lambda, for learned mixers and hand-crafted policies side by side."""

    data: str
    """Shards with pictures: a path, a glob or a brace pattern (quote it)."""
    out: Path
    """The PNG to write."""
    mixer: tuple[Path, ...] = ()
    """Learned mixers: one or several .safetensors files."""
    connect: str = ""
    """A running server, HOST or HOST:PORT or unix:///PATH: its mixers are drawn as those from files are."""
    mixer_name: tuple[str, ...] = ()
    """Which of the server's mixers; none takes all."""
    policies: tuple[PolicyName, ...] = ()
    """Hand-crafted policies, one or several; drawn before the learned mixers."""
    masks_plot: Path | None = None
    """Another PNG: mean and spread of masks against lambda, where a trivial mixer shows at a glance."""
    maps: Path | None = None
    """Another PNG: content and attention maps of the learned mixers, at the middle one of `lams`."""
    pairs: int = 6
    """Pairs of pictures."""
    lams: tuple[float, ...] = ()
    """Lambdas to draw, the share of the first picture; none takes 0.1 0.3 0.5 0.7 0.9, of several mixers 0.5."""
    image_size: int = 0
    """Side of the pictures in pixels; 0 takes what mixers were trained on, for policies alone the data's, up to 224."""
    seed: int = 0
    """Chooses the pictures, and what a policy draws."""
    device: DeviceKind = "auto"
    """Where mixers run."""

    def __post_init__(self) -> None:
        Credentials.__post_init__(self)
        if not (self.mixer or self.connect or self.policies):
            raise ConfigError(
                "nothing mixes: give --mixer FILE.safetensors, --connect HOST:PORT or --policies mixup cutmix, "
                "or several of them"
            )
        if self.mixer_name and not self.connect:
            raise ConfigError("--mixer-name chooses among the mixers of a server; give --connect HOST:PORT with it")
        if self.maps and not self.mixer:
            raise ConfigError(
                "--maps draws the inside of a learned mixer, which a server does not show; give one with "
                "--mixer FILE.safetensors"
            )
        if self.pairs < 1:
            raise ConfigError(f"pairs must be at least 1, got {self.pairs}")
        if not all(0 <= lam <= 1 for lam in self.lams):
            raise ConfigError(f"lams must lie in [0, 1], got {self.lams}")
        for path in filter(None, (self.out, self.masks_plot, self.maps)):
            if path.suffix.lower() != ".png":
                raise ConfigError(f"pictures are written as .png, got {str(path)!r}")


@program
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `samix gallery --mixer FILE --connect HOST --policies NAME --data GLOB --out PNG`."""
    config = parse_config(GalleryConfig, "gallery", argv)
    setup_logging()
    device = choose_device(config.device)
    with _open(config, device) as learned:
        _draw(config, learned, device)
    return 0


def _draw(config: GalleryConfig, learned: dict[str, LearnedMixer], device: torch.device) -> None:
    pictures = _pictures(config, _trained_size(config, learned)).to(device)
    mixers: dict[str, Mixer] = {name: hand_crafted(name) for name in config.policies}
    mixers |= {title: each.mixer for title, each in learned.items()}
    pairs, lams = pictures[: 2 * config.pairs], config.lams or (_SWEEP if len(mixers) == 1 else (0.5,))
    draw_gallery(config.out, mixers, pairs, lams, seed=config.seed)
    log.info("gallery", extra={"path": str(config.out), "mixers": ", ".join(mixers)})
    if config.maps is not None:
        loaded = {name: mixer for name, mixer in mixers.items() if isinstance(mixer, FrozenMixer)}
        draw_maps(config.maps, loaded, pairs, lams[len(lams) // 2])
        log.info("maps", extra={"path": str(config.maps), "mixers": ", ".join(loaded)})
    if config.masks_plot is not None:
        _plot_masks(config, config.masks_plot, mixers, pictures)


def _plot_masks(config: GalleryConfig, path: Path, mixers: dict[str, Mixer], pictures: Tensor) -> None:
    shown = min(config.pairs, _EXAMPLE_PAIRS) if len(mixers) == 1 else 1
    looks = {name: look_at(mixer, pictures, pairs=shown, seed=config.seed) for name, mixer in mixers.items()}
    draw_masks_plot(path, looks)
    for name, look in looks.items():
        figures = {"lam_error": round(look.quality.mean_error, 4), "spread": round(look.quality.mean_spread, 4)}
        log.info("masks_plot", extra={"path": str(path), "mixer": name, **figures, "verdict": look.verdict})


@contextmanager
def _open(config: GalleryConfig, device: torch.device) -> Iterator[dict[str, LearnedMixer]]:
    """Open the learned mixers by what is written above them: those from files first."""
    learned = {each.title: each for each in (open_file(path, device) for path in config.mixer)}
    if not config.connect:
        yield learned
        return
    with open_served(config.connect, config.mixer_name, config) as served:
        here = learned.keys()
        yield learned | {f"{e.title} at {config.connect}" if e.title in here else e.title: e for e in served}


def _trained_size(config: GalleryConfig, learned: dict[str, LearnedMixer]) -> int:
    """Choose the side of the pictures; 0 where only the data can tell."""
    trained = {each.image_size for each in learned.values()} - {0}
    if not config.image_size and len(trained) > 1:
        cure = "one size with --image-size" + (", or one of them with --mixer-name" if config.connect else "")
        raise ConfigError(f"the mixers were trained on {sorted(trained)} pixels; choose {cure}")
    image_size = config.image_size or max(trained, default=0)
    for each in learned.values():
        if isinstance(each.mixer, FrozenMixer):  # a server refuses by itself
            each.mixer.spec.check_size(image_size, image_size)
    if image_size < 0:
        raise ConfigError(f"image_size must be a number of pixels, or 0 for the data's own, got {image_size}")
    return image_size


def _pictures(config: GalleryConfig, image_size: int) -> Tensor:
    """Read pictures uint8 [B, 3, S, S], two for each pair and more for figures."""
    shards = open_shards(config.data)
    wanted = max(2 * config.pairs, _QUALITY_IMAGES if config.masks_plot else 0)
    if shards.total < 2 * config.pairs:
        raise ConfigError(f"{config.pairs} pairs need {2 * config.pairs} pictures, {config.data} has {shards.total}")
    positions = torch.randperm(shards.total, generator=generator_for(config.seed))[:wanted].tolist()
    rng = np.random.default_rng(config.seed)
    with SampleReader(shards) as reader:
        side = image_size or min(*open_picture(reader.read(positions[0])).size, _LARGEST_OF_DATA)
        crop = CentreCrop(size=side, resize=side)
        pixels = [crop(open_picture(reader.read(position)), rng) for position in positions]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
