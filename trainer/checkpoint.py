"""Checkpoints: written beside the old one and renamed, so that a crash or a full disk leaves the old one whole."""

from pathlib import Path
from typing import Any

import torch

from samix.errors import ConfigError

FORMAT_VERSION = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values atomically."""
    temporary = path.with_suffix(f"{path.suffix}.partial")
    try:
        torch.save({"format": FORMAT_VERSION, **state}, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; tensors and plain values only, so that no code of a stranger runs.

    Raises:
        ConfigError: if it is missing, damaged or of another format.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no checkpoint {path}") from error
    except (RuntimeError, ValueError, EOFError, OSError) as error:
        raise ConfigError(f"{path} is not a whole checkpoint ({error}); use an older one") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT_VERSION:
        raise ConfigError(f"{path} is no checkpoint of format {FORMAT_VERSION} of this trainer")
    return state
