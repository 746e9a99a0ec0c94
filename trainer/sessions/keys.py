"""The key of a run's session, kept in its folder so that a run that is resumed goes on with its mixer."""

import json
import os
from pathlib import Path

from samix.client.online.session import SessionKey
from samix.errors import ConfigError
from services.files import naming

FILE = "session.json"


def read_key(folder: Path) -> SessionKey | None:
    """Read the key of the run's session; None if it has none.

    Raises:
        ConfigError: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        return SessionKey(name=str(content["session"]), token=bytes.fromhex(content["token"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds no key of a session ({error}); delete it, and the run begins a new mixer"
        ) from error


def write_key(folder: Path, key: SessionKey) -> None:
    """Keep a key, for this user's eyes alone.

    Raises:
        OSError: if it cannot be written.
    """
    path = folder / FILE
    content = json.dumps({"session": key.name, "token": key.token.hex()}) + "\n"
    with naming(path):
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(content)


def forget_key(folder: Path) -> None:
    """Delete the key of a session that is over."""
    (folder / FILE).unlink(missing_ok=True)
