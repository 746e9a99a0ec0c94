"""Checkpoints: written beside the old one and renamed, so that a crash or a full disk leaves the old one whole."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from samix.errors import ConfigError

FORMAT_VERSION = 2

_DAMAGE = (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values atomically.

    Raises:
        OSError: if the disk is full or the folder is gone.
    """
    temporary = path.with_suffix(f"{path.suffix}.partial")
    try:
        with temporary.open("wb") as file:  # given a path, torch hides why the disk refused
            torch.save({"format": FORMAT_VERSION, **state}, file)
        temporary.replace(path)
    except OSError as error:
        error.filename = str(path)  # a refused write does not know its file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; tensors and plain values only, so that no code of a stranger runs.

    Raises:
        ConfigError: if it is missing, damaged or of another format.
    """
    try:
        state = _load(path)
    except OSError as error:
        raise ConfigError(f"cannot read checkpoint {path} ({error.strerror or error}); check the path") from error
    except _DAMAGE as error:
        raise ConfigError(f"{path} is damaged or no checkpoint of this trainer; use an older one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT_VERSION:
        raise ConfigError(f"{path} is no checkpoint of format {FORMAT_VERSION} of this trainer")
    return state


def _load(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # torch writes checksums and does not look at them again
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)
