"""Checkpoints: written beside the old ones and renamed, so that a crash or a full disk leaves those whole.

A run keeps them in a folder of their own, named after where they stand in it; the name that sorts last is the newest.
"""

import math
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from samix.errors import ConfigError
from services.files import naming

FORMAT_VERSION = 3
BEST = "best.pt"

_DAMAGE = (RuntimeError, ValueError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointConfig:
    """When the state of a run is saved, and how much of it is kept."""

    every_steps: int = 0
    """Steps from one checkpoint to the next within an epoch; 0 saves at the end of each epoch alone."""
    every_s: float = 600.0
    """Longest time without a checkpoint, seconds; at most this much work is lost by a crash. 0 is no limit."""
    keep: int = 2
    """Checkpoints kept, apart from the best one; older ones are deleted."""

    def __post_init__(self) -> None:
        if self.every_steps < 0:
            raise ConfigError(f"checkpoint.every_steps must be at least 0, got {self.every_steps}")
        if not 0 <= self.every_s < math.inf:
            raise ConfigError(f"checkpoint.every_s must be at least 0, got {self.every_s}; 0 sets no limit")
        if self.keep < 1:
            raise ConfigError(f"checkpoint.keep must be at least 1, got {self.keep}")

    def is_due(self, step: int, age_s: float) -> bool:
        """Tell whether to save within an epoch, after so many of its steps and so many seconds since the last time."""
        return bool(self.every_steps and step % self.every_steps == 0) or bool(self.every_s and age_s >= self.every_s)


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path = path
        self._keep = keep

    def save(self, state: dict[str, Any], *, epoch: int, step: int) -> Path:
        """Write a checkpoint of tensors and plain values, then delete those beyond the ones to keep and the remains of
        writes that were killed.

        Raises:
            OSError: if the disk is full or the folder is gone; all earlier checkpoints are still there.
        """
        self.path.mkdir(exist_ok=True)
        path = self.path / f"epoch-{epoch:04d}-step-{step:07d}.pt"
        save_checkpoint(path, state)
        for old in (*self._found()[: -self._keep], *self._unfinished()):
            old.unlink()
        return path

    def mark_newest_best(self) -> None:
        """Keep the newest checkpoint as the best one, too."""
        path, temporary = self._found()[-1], self.path / f"{BEST}.partial"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)  # costs no space as long as both are there
        except OSError:  # a file system without links
            shutil.copyfile(path, temporary)
        temporary.replace(self.path / BEST)

    def newest(self) -> Path | None:
        """Find the checkpoint to go on from."""
        return next(reversed(self._found()), None)

    def clear(self) -> None:
        """Delete all checkpoints of an earlier run."""
        for path in (*self._found(), *self._unfinished(), self.path / BEST):
            path.unlink(missing_ok=True)

    def _found(self) -> list[Path]:
        return sorted(self.path.glob("epoch-*-step-*.pt"))

    def _unfinished(self) -> Iterator[Path]:
        return self.path.glob("*.partial")


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and plain values atomically, and to the disk itself.

    Raises:
        OSError: if the disk is full or the folder is gone.
    """
    temporary = path.with_suffix(f"{path.suffix}.partial")
    try:
        with naming(path):
            with temporary.open("wb") as file:  # given a path, torch hides why the disk refused
                torch.save({"format": FORMAT_VERSION, **state}, file)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
            temporary.replace(path)
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
        raise ConfigError(
            f"{path} is damaged or no checkpoint of this trainer; use an older one, as --resume does once it is deleted"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT_VERSION:
        raise ConfigError(
            f"{path} is no checkpoint of format {FORMAT_VERSION}, which this trainer reads; use the one that wrote it, "
            "or start anew"
        )
    return state


def _load(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():  # torch writes checksums and does not look at them again
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)
