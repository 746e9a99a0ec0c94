"""A session on disk: a safetensors file with a JSON in its header, which appears whole or not at all. No pickle."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from samix.cotraining.settings import SessionSettings
from samix.errors import WrongState

FORMAT_VERSION = 1
_KEY = "samix-session"


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionRecord:
    """All of a session but its tensors."""

    name: str
    """Of the session."""
    token_sha256: str
    """Of its secret, in hexadecimal; the secret itself is not written."""
    settings: SessionSettings
    """What it is."""
    step: int
    """Steps that the mixer has learned, or passed over."""
    weights_step: int | None
    """Steps of the weights that its momentum copy followed last; None before the first."""


class Checkpoints:
    """The checkpoints of a server, one file for each session."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, record: SessionRecord, tensors: dict[str, Tensor]) -> None:
        """Write a session in place of its last checkpoint.

        Raises:
            OSError: if the disk is full or the folder is gone; the last checkpoint is still there.
        """
        header = {
            "format": FORMAT_VERSION,
            "name": record.name,
            "token_sha256": record.token_sha256,
            "settings": json.loads(record.settings.to_json()),
            "step": record.step,
            "weights_step": record.weights_step,
        }
        path = self._path(record.name)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            try:
                save_file(tensors, temporary, metadata={_KEY: json.dumps(header, sort_keys=True)})
            except SafetensorError as error:  # how it says that the disk is full
                raise OSError(f"{path} cannot be written ({error})") from error
            with temporary.open("rb") as file:
                os.fsync(file.fileno())  # else a power cut could leave the new name on an empty file
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def read_record(self, name: str) -> SessionRecord | None:
        """Read what a checkpoint says of its session; None if there is none.

        Raises:
            WrongState: if it is damaged.
        """
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_KEY])
            if header["format"] != FORMAT_VERSION:
                raise WrongState(f"the checkpoint of session {name} is of another version; begin a new session")
            return SessionRecord(
                name=header["name"],
                token_sha256=header["token_sha256"],
                settings=SessionSettings.from_json(json.dumps(header["settings"])),
                step=header["step"],
                weights_step=header["weights_step"],
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise WrongState(
                f"the checkpoint of session {name} is damaged ({error}); begin a session of another name"
            ) from error

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of a checkpoint.

        Raises:
            WrongState: if it is damaged.
        """
        try:
            with safe_open(self._path(name), framework="pt") as file:
                return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError) as error:
            raise WrongState(
                f"the checkpoint of session {name} is damaged ({error}); begin a session of another name"
            ) from error

    def delete(self, name: str) -> None:
        """Delete the checkpoint of a session that is over."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.checkpoint"  # not .safetensors: folders of mixers are searched for those
