"""A trained mixer leaves its run: measured, with its origin, as an artefact."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer
from services.shards.dataset import Batch
from trainer.provenance import software
from trainer.quality import mask_quality

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a mixer comes from."""

    recipe: str
    """Name of the recipe."""
    data: str
    """Shards it was trained on."""
    epochs: int
    """Times it saw them."""
    seed: int
    """Of everything that was drawn."""


def first_pictures(batches: Iterable[Batch], count: int = 256) -> Tensor:
    """Collect up to `count` pictures uint8 [N, 3, H, W] to look at masks on."""
    collected: list[Tensor] = []
    for batch in batches:
        collected.append(batch.images)
        if sum(map(len, collected)) >= count:
            break
    return torch.cat(collected)[:count]


def export_mixer(path: Path, mixer: FrozenMixer, pictures: Tensor, origin: Origin) -> dict[str, float]:
    """Write a mixer and say how good its masks are.

    Args:
        path: the .safetensors file.
        mixer: what to write.
        pictures: uint8 [B, 3, H, W] to look at its masks on.
        origin: where it comes from.

    Returns:
        lam_error and spread, see `mask_quality`; they also stand in the artefact.
    """
    quality = mask_quality(mixer, pictures, seed=origin.seed)
    figures = {"lam_error": round(quality.mean_error, 4), "spread": round(quality.mean_spread, 4)}
    provenance = {
        "data": origin.data.rpartition("/")[2],
        "recipe": origin.recipe,
        "epochs": str(origin.epochs),
        "seed": str(origin.seed),
        **{name: f"{value:.4f}" for name, value in figures.items()},
        **software(),
    }
    save_artefact(path, mixer, provenance)
    log.info("artefact", extra={"path": str(path), "mixer": mixer.name, "version": mixer.version, **figures})
    if quality.is_trivial or quality.ignores_lam:
        log.warning("mixer_not_usable", extra={"is_trivial": quality.is_trivial, "ignores_lam": quality.ignores_lam})
    return figures
