"""The mixers a server hosts, by name."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from samix.errors import ArtefactError, ConfigError, MixerNotFound
from samix.mixing.artefact import load_mixer
from samix.mixing.frozen import FrozenMixer


class Registry:
    """Hosted mixers, at least one, of different names. Use `open_registry` to read them from files."""

    def __init__(self, mixers: Sequence[FrozenMixer], load_durations_s: Mapping[str, float] | None = None) -> None:
        self.mixers = sorted(mixers, key=lambda mixer: mixer.name)
        """Sorted by name."""
        self.load_durations_s = load_durations_s or {}
        """How long it took to read each one that comes from a file, in seconds, by name."""
        self._by_name = {mixer.name: mixer for mixer in mixers}

    def find(self, name: str, version: str = "") -> FrozenMixer:
        """Look a mixer up; an empty name is the only one, an empty version the loaded one.

        Raises:
            MixerNotFound: says what there is.
        """
        if not name and len(self._by_name) > 1:
            raise MixerNotFound(f"this server hosts several mixers, name one of {self._names()}")
        mixer = self._by_name.get(name or self.mixers[0].name)
        if mixer is None:
            raise MixerNotFound(f"no mixer is called {name!r} here; this server hosts {self._names()}")
        if version not in ("", mixer.version):
            raise MixerNotFound(
                f"mixer {mixer.name!r} has version {mixer.version} here, not {version!r}; "
                "leave the version empty to take the loaded one"
            )
        return mixer

    def _names(self) -> str:
        return ", ".join(repr(mixer.name) for mixer in self.mixers)


def open_registry(paths: Sequence[Path], device: str) -> Registry:
    """Load mixers from files, and from all `*.safetensors` of folders.

    Raises:
        ArtefactError: if a file is missing or no mixer, or a folder holds none.
        ConfigError: if no path is given, or two files hold mixers of one name.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ConfigError("name at least one mixer: --mixers FILE_OR_FOLDER...")
    origins: dict[str, Path] = {}
    durations_s: dict[str, float] = {}
    mixers = []
    for file in files:
        started_s = time.monotonic()
        mixer = load_mixer(file, device)
        durations_s[mixer.name] = time.monotonic() - started_s
        if mixer.name in origins:
            raise ConfigError(
                f"{file} and {origins[mixer.name]} both hold a mixer called {mixer.name!r}; serve one of them"
            )
        origins[mixer.name] = file
        mixers.append(mixer)
    return Registry(mixers, durations_s)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ArtefactError(f"there is no mixer (*.safetensors) in folder {path}; name a file, or another folder")
    return files
