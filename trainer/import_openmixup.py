"""Turn an AutoMix or SAMix checkpoint of OpenMixup into a mixer.

Only tensors and plain values are unpickled: a checkpoint that holds code is refused, not run.
"""

import hashlib
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from samix.errors import ArtefactError, ConfigError
from samix.mixing.artefact import check_artefact_path, save_artefact
from samix.mixing.checksum import mixer_checksum
from samix.mixing.frozen import FrozenMixer, MaskNet, freeze
from samix.mixing.openmixup import ImportChoices, import_openmixup
from services.cli import program
from services.config import parse_config
from services.logs import setup_logging
from trainer.provenance import software

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(ImportChoices):
    """Turn an AutoMix or SAMix checkpoint of OpenMixup into a mixer. What shows in the checkpoint is recognised."""

    checkpoint: tyro.conf.Positional[Path]
    """The .pth file that training saved, with its momentum encoder (backbone_k) and mixing block."""
    out: Path
    """The artefact to write, ending in .safetensors."""
    name: str = ""
    """Name a server hosts the mixer by; empty takes the file's name."""

    def __post_init__(self) -> None:
        if not self.name.isprintable() or len(self.name) > 128:
            raise ConfigError(f"name must be at most 128 printable characters, got {self.name[:60]!r}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a file of weights holds."""

    state: Mapping[str, Tensor]
    """Its `state_dict`."""
    epoch: int | None
    """Epochs trained, if it says so."""


@program
def main(argv: Sequence[str] | None = None) -> int | None:
    """Run `samix import-openmixup CKPT --out FILE`."""
    config = parse_config(ImportConfig, "import-openmixup", argv)
    setup_logging()
    check_artefact_path(config.out)
    checkpoint = read_checkpoint(config.checkpoint)
    mixer = build_mixer(config, checkpoint)
    save_artefact(config.out, mixer, _provenance(config.checkpoint, checkpoint))
    _report(config, mixer)
    return 0


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a `{"state_dict": ..., "meta": ...}` as training saves it, or a bare state dict.

    Raises:
        ArtefactError: if there is no such file, it is damaged, holds code, or something else than tensors by name.
    """
    if not path.is_file():
        raise ArtefactError(f"there is no checkpoint at {path}; give the path of a .pth file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArtefactError(
            f"{path} is damaged, or holds more than tensors and plain values; copy it again or, if you trust it, "
            "load it yourself and save its state_dict alone"
        ) from error
    except Exception as error:  # whatever a damaged archive leads to, from EOFError to UnicodeDecodeError
        raise ArtefactError(f"{path} is damaged ({type(error).__name__}); copy it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(_is_named_tensor(*entry) for entry in state.items()):
        raise ArtefactError(f"{path} holds no state_dict of tensors; give a checkpoint as training saves it")
    meta = content.get("meta")
    epoch = meta.get("epoch") if isinstance(meta, dict) else None
    return Checkpoint(state=state, epoch=epoch if isinstance(epoch, int) else None)


def build_mixer(config: ImportConfig, checkpoint: Checkpoint) -> FrozenMixer:
    """Recognise the checkpoint and make a mixer of it, on the CPU.

    Raises:
        ArtefactError: if the checkpoint is of a layout that is not supported, or damaged.
        ConfigError: if a flag is missing, out of bounds or contradicts the checkpoint.
    """
    try:
        spec, weights = import_openmixup(checkpoint.state, config)
    except ArtefactError as error:
        raise ArtefactError(f"{config.checkpoint}: {error}") from error
    net = MaskNet.build(spec)
    net.load_state_dict(weights)
    sha256 = mixer_checksum(spec.to_json(), net.state_dict())
    return freeze(net, spec, name=config.name or config.out.stem, sha256=sha256, device="cpu")


def _provenance(path: Path, checkpoint: Checkpoint) -> dict[str, str]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    epoch = {} if checkpoint.epoch is None else {"epoch": str(checkpoint.epoch)}
    return {"source": path.name, "source_sha256": sha256, **epoch, **software()}


def _report(config: ImportConfig, mixer: FrozenMixer) -> None:
    spec, block = mixer.spec, mixer.spec.block
    is_samix = block.lam_encoding == "multiply"
    if config.lam_curve is not None and not is_samix:
        log.warning("lam_curve_unused", extra={"reason": "AutoMix bends no lambda", "lam_curve": config.lam_curve})
    recognised: dict[str, Any] = {
        "kind": "SAMix" if is_samix else "AutoMix",
        "lam_encoding": block.lam_encoding,
        **({"lam_curve": block.lam_curve} if is_samix else {}),
        "backbone": spec.backbone.name,
        "stem": spec.backbone.stem,
        "stage": spec.stage,
        "upsampling": spec.rendering.upsampling,
        "normalisation": config.normalisation,
        "image_size": spec.image_size,
    }
    written = {"path": str(config.out), "mixer": mixer.name, "version": mixer.version}
    log.info("imported", extra=recognised | written)


def _is_named_tensor(name: object, value: object) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)
