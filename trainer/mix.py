"""Mix two pictures: a first look at what a mixer does, beside Mixup and CutMix of the same pair."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from torch import Tensor

from samix.credentials import Credentials
from samix.errors import ConfigError
from samix.mixing.batch import MixedBatch
from samix.mixing.policies import cutmix, mixup
from services.cli import program
from services.config import parse_config
from services.files import naming
from services.logs import setup_logging
from trainer.learned import LearnedMixer, open_file, open_served
from trainer.pairs import mix_pairs
from trainer.photos import open_photo, squares
from trainer.pictures.pair import PairMix, draw_pair
from trainer.shipped import shipped_mixer
from trainer.world import DeviceKind, choose_device

log = logging.getLogger(__name__)

_LARGEST_BY_ITSELF = 512  # pixels a side: enough for a screen
_LARGEST = 4096  # pixels a side: what is computed on whole pictures then fits into 2 GB


@dataclass(frozen=True, kw_only=True)
class MixConfig(Credentials):
    """Mix two pictures by a learned mask, and compare with Mixup and CutMix. Without --mixer and --connect, by the
    mixer that comes with this project, which was trained on pictures of 32 px."""

    a: tyro.conf.Positional[Path]
    """The first picture: a file of any format that Pillow reads."""
    b: tyro.conf.Positional[Path]
    """The second one."""
    out: Path
    """The mixed picture to write, a PNG."""
    lam: float = 0.5
    """Lambda, the share of the first picture, from 0 to 1."""
    compare: bool = True
    """Write OUT-compared.png too: both pictures, the mix and its mask, Mixup and CutMix of the same pair."""
    mixer: Path | None = None
    """A learned mixer: a .safetensors file."""
    connect: str = ""
    """A running server instead, HOST or HOST:PORT or unix:///PATH; nothing is computed here then."""
    mixer_name: str = ""
    """Which of the server's mixers; needed where it hosts several."""
    size: int = 0
    """Side of the mix in pixels, up to 4096; both pictures are cropped to their middle and resized. 0 takes the shorter
    side of the smaller picture, up to 512, but not less than the mixer was trained on."""
    encoder_size: int = 0
    """Side of the copies that the mixer looks at, in pixels; 0 takes what it was trained on, where masks are best."""
    seed: int = 13  # its box is not cut off at the border, from λ = 0.4 on
    """Places the box of CutMix."""
    device: DeviceKind = "auto"
    """Where a mixer from a file runs."""

    def __post_init__(self) -> None:
        Credentials.__post_init__(self)
        if not 0 <= self.lam <= 1:
            raise ConfigError(f"lam is the share of the first picture, from 0 to 1, got {self.lam}")
        if not 0 <= self.size <= _LARGEST:
            raise ConfigError(f"size must lie in 0..{_LARGEST} pixels, got {self.size}; 0 chooses one")
        if self.encoder_size < 0:
            raise ConfigError(f"encoder_size must be at least 0 pixels, got {self.encoder_size}; 0 chooses one")
        if self.mixer is not None and self.connect:
            raise ConfigError("--mixer computes here and --connect on a server; give one of them")
        if self.mixer_name and not self.connect:
            raise ConfigError("--mixer-name chooses among the mixers of a server; give --connect HOST:PORT with it")
        if self.out.suffix.lower() != ".png":
            raise ConfigError(f"pictures are written as .png, got {str(self.out)!r}")
        for path in (self.out, self.compared) if self.compare else (self.out,):
            if path.resolve() in (self.a.resolve(), self.b.resolve()):
                raise ConfigError(f"--out {self.out} would replace {path}, a picture to mix; choose another name")

    @property
    def compared(self) -> Path:
        """Where the comparison is written."""
        return self.out.with_name(f"{self.out.stem}-compared.png")


@program
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `samix mix A B --lam SHARE --out PNG [--mixer FILE | --connect HOST:PORT]`."""
    config = parse_config(MixConfig, "mix", argv)
    setup_logging()
    photos = [open_photo(path) for path in (config.a, config.b)]
    with _open(config) as learned:
        pair = squares(photos, config.size or _usual_size(photos, learned))
        looked_at = config.encoder_size or learned.image_size or max(pair.shape)
        mixed = learned.mix_pair(pair, config.lam, encoder_size=looked_at)
    _write(config.out, mixed.images[0])
    fields = {"path": str(config.out), "mixer": learned.title, "lam": config.lam}
    log.info("mixed", extra=fields | {"side": pair.shape[-1], "mask_mean": round(mixed.masks[0].mean().item(), 3)})
    if config.compare:
        draw_pair(config.compared, pair, config.lam, _compare(config, pair, learned, mixed))
        log.info("compared", extra={"path": str(config.compared)})
    return 0


@contextmanager
def _open(config: MixConfig) -> Iterator[LearnedMixer]:
    if not config.connect:
        yield open_file(config.mixer or shipped_mixer(), choose_device(config.device))
        return
    with open_served(config.connect, [config.mixer_name] if config.mixer_name else [], config) as served:
        if len(served) > 1:
            titles = ", ".join(learned.title for learned in served)
            raise ConfigError(f"the server at {config.connect} hosts {titles}; choose one with --mixer-name")
        yield served[0]


def _usual_size(photos: Sequence[Image.Image], learned: LearnedMixer) -> int:
    shorter = min(side for photo in photos for side in photo.size)
    return max(min(shorter, _LARGEST_BY_ITSELF), learned.image_size)


def _compare(config: MixConfig, pair: Tensor, learned: LearnedMixer, mixed: MixedBatch) -> list[PairMix]:
    by_hand = [
        PairMix(name=name, how=how, mixed=mix_pairs(policy, pair[:1], pair[1:], config.lam, seed=config.seed))
        for name, how, policy in (("Mixup", "both everywhere", mixup()), ("CutMix", "a box of B in A", cutmix()))
    ]
    return [PairMix(name=learned.title, how="by a learned mask", mixed=mixed), *by_hand]


def _write(path: Path, image: Tensor) -> None:
    """Write float32 [3, H, W] in [0, 1] as PNG."""
    pixels = (image.cpu() * 255).round().byte().permute(1, 2, 0).numpy()
    with naming(path):
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
