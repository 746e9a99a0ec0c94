"""Mixer files in folders that others write to at any time."""

import contextlib
import json
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samix.errors import ArtefactError, ConfigError
from samix.mixing.frozen import FrozenMixer

SUFFIX = ".safetensors"

_MAX_HEADER_BYTES = 16 << 20  # a hundred bytes for each tensor, so a megabyte is much

Load = Callable[[Path], FrozenMixer]
"""Reads a mixer; raises InputError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """What changes when a file does, at the cost of one look; its checksum is read with the weights."""

    mtime_ns: int
    """Time of the last change of its content, in nanoseconds since 1970; tools that copy files set it back."""
    ctime_ns: int
    """Time of the last change of anything about it, likewise; nobody can set it back."""
    num_bytes: int
    """Its length."""


def check_paths(paths: Sequence[Path]) -> None:
    """Refuse a path that is not there, before it is taken for one that is empty.

    Raises:
        ConfigError: if no path is given.
        ArtefactError: if there is nothing at a path.
    """
    if not paths:
        raise ConfigError("name a folder of mixers, it may be empty: --mixers FOLDER")
    for path in paths:
        if not path.exists():
            raise ArtefactError(f"there is no mixer at {path}; give a .safetensors file, or a folder, that exists")


def list_folder(folder: Path) -> list[Path]:
    """List the mixers of a folder, sorted.

    Raises:
        OSError: if it cannot be listed, because it is gone, for example.
    """
    return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)


def look(paths: Sequence[Path]) -> dict[Path, Fingerprint]:
    """Look at files, and at those of folders, without reading them.

    Returns:
        The files that are there; only a file may be missing, never a folder.

    Raises:
        OSError: if a folder cannot be listed: that is an outage, not a wish to unload everything in it.
    """
    found = {}
    for path in paths:
        is_file = path.suffix == SUFFIX and not path.is_dir()
        for file in [path] if is_file else list_folder(path):
            with contextlib.suppress(FileNotFoundError):  # it may have gone since
                status = file.stat()
                if stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
                    found[file] = Fingerprint(
                        mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns, num_bytes=status.st_size
                    )
    return found


def read_name(path: Path) -> str | None:
    """Read which mixer a file holds, without its weights; None if it does not say so, which loading it explains."""
    try:
        with path.open("rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(num_bytes, _MAX_HEADER_BYTES)))
        name = json.loads(header["__metadata__"]["samix"])["name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def load_copy(path: Path, load: Load) -> FrozenMixer:
    """Load a mixer from a private copy of its file.

    Artefacts are read through a memory map. If somebody writes over the file meanwhile, which `cp` does, the map loses
    its pages and the process dies of SIGBUS; a copy can only be damaged, which its checksum tells.

    Raises:
        InputError: as `load` does.
        OSError: if the file cannot be copied.
    """
    with tempfile.TemporaryDirectory(prefix="samix-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        try:
            return load(copy)
        except ArtefactError as error:
            raise ArtefactError(str(error).replace(str(copy), str(path))) from error
