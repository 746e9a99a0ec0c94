"""The mixers a server hosts, by name and version."""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixer_server.hosting.mixer_files import list_folder
from samix.errors import ArtefactError, ConfigError, MixerError, MixerNotFound, MixerUnavailable
from samix.mixing.artefact import load_mixer
from samix.mixing.frozen import FrozenMixer

Key = tuple[str, str]
"""Name and version of a mixer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where a hosted mixer was read from."""

    file: Path
    """The artefact."""
    read_s: float
    """Time it took to read, in seconds."""


class Registry:
    """Hosted mixers, of one name several versions. Use `open_registry` to read them from files.

    Changes replace what readers see: requests look mixers up without a lock, and meet the versions from before a change
    or those from after it.
    """

    def __init__(
        self,
        mixers: Iterable[FrozenMixer] = (),
        origins: Mapping[Key, Origin] | None = None,
        *,
        is_filling: bool = False,
    ) -> None:
        """Host mixers; of one name the later one is the newer.

        Args:
            mixers: what is hosted from the start.
            origins: where those that come from files were read.
            is_filling: whether more will come before the server is ready; see `end_filling`.
        """
        self._lock = threading.Lock()
        self._hosted = _by_name(mixers)  # versions newest first; replaced, never changed
        self._origins = dict(origins or {})  # likewise
        self._is_filling = is_filling

    @property
    def mixers(self) -> list[FrozenMixer]:
        """Sorted by name, of one name the newest version first."""
        return [mixer for _, versions in sorted(self._hosted.items()) for mixer in versions]

    def versions(self, name: str) -> tuple[FrozenMixer, ...]:
        """List the hosted versions of a mixer, the newest first; none if it is not hosted."""
        return self._hosted.get(name, ())

    def origin(self, mixer: FrozenMixer) -> Origin | None:
        """Tell where a hosted mixer was read; None for one that was made in this process."""
        return self._origins.get((mixer.name, mixer.version))

    def find(self, name: str, version: str = "") -> FrozenMixer:
        """Look a mixer up; an empty name is the only one, an empty version the newest.

        Raises:
            MixerNotFound: says what there is.
            MixerUnavailable: instead, as long as the server is still filled.
        """
        hosted = self._hosted
        if not name and (len(hosted) > 1 or self._is_filling):
            raise self._missing(f"this server hosts several mixers, name one of {_quoted(hosted)}")
        versions = hosted.get(name or next(iter(hosted), ""), ())
        if not hosted:
            raise self._missing("this server hosts no mixer now; ask its operator to load one")
        if not versions:
            raise self._missing(f"no mixer is called {name!r} here; this server hosts {_quoted(hosted)}")
        mixer = next((mixer for mixer in versions if version in ("", mixer.version)), None)
        if mixer is None:
            raise self._missing(
                f"mixer {versions[0].name!r} has version {' and '.join(mixer.version for mixer in versions)} here, "
                f"not {version!r}; leave the version empty to take the newest"
            )
        return mixer

    def announce(self, mixer: FrozenMixer) -> None:
        """Host a mixer that is not warm yet: it is found by its version, and by its name if there is no other."""
        with self._lock:
            self._replace(mixer.name, (*self._others(mixer), mixer))

    def add(self, mixer: FrozenMixer, origin: Origin | None = None) -> None:
        """Host a mixer as the newest version of its name, or make a hosted one the newest."""
        with self._lock:
            self._replace(mixer.name, (mixer, *self._others(mixer)))
            if origin is not None:
                self._origins = self._origins | {(mixer.name, mixer.version): origin}

    def remove(self, name: str, version: str = "") -> list[FrozenMixer]:
        """Host a mixer no more; answers what was removed, which requests that found it may still use.

        Args:
            name: of the mixer.
            version: the one to remove; empty removes all.
        """
        with self._lock:
            removed = [mixer for mixer in self.versions(name) if version in ("", mixer.version)]
            self._replace(name, tuple(mixer for mixer in self.versions(name) if mixer not in removed))
            gone = {(mixer.name, mixer.version) for mixer in removed}
            self._origins = {key: origin for key, origin in self._origins.items() if key not in gone}
        return removed

    def end_filling(self) -> None:
        """Say that all mixers are there which a caller may count on: from now on others are unknown."""
        self._is_filling = False

    def _others(self, mixer: FrozenMixer) -> tuple[FrozenMixer, ...]:
        return tuple(other for other in self.versions(mixer.name) if other.version != mixer.version)

    def _replace(self, name: str, versions: tuple[FrozenMixer, ...]) -> None:
        hosted = self._hosted | {name: versions}
        self._hosted = {name: versions for name, versions in hosted.items() if versions}

    def _missing(self, sentence: str) -> MixerError:
        if self._is_filling:  # clients give up on what is not found, and the mixer may come within a second
            return MixerUnavailable("this server is still reading its mixers")
        return MixerNotFound(sentence)


def open_registry(paths: Sequence[Path], device: str) -> Registry:
    """Load mixers from files, and from all `*.safetensors` of folders.

    Raises:
        ArtefactError: if a file is missing or no mixer, or a folder holds none.
        ConfigError: if no path is given, or two files hold mixers of one name.
    """
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise ConfigError("name at least one mixer: --mixers FILE_OR_FOLDER..., or a dataset: --dataset NAME=SHARDS")
    mixers: dict[str, FrozenMixer] = {}
    origins: dict[Key, Origin] = {}
    for file in files:
        started_s = time.monotonic()
        mixer = load_mixer(file, device)
        if other := mixers.get(mixer.name):
            raise ConfigError(
                f"{file} and {origins[other.name, other.version].file} both hold a mixer called {mixer.name!r}; "
                "serve one of them"
            )
        mixers[mixer.name] = mixer
        origins[mixer.name, mixer.version] = Origin(file=file, read_s=time.monotonic() - started_s)
    return Registry(mixers.values(), origins)


def _by_name(mixers: Iterable[FrozenMixer]) -> dict[str, tuple[FrozenMixer, ...]]:
    hosted: dict[str, tuple[FrozenMixer, ...]] = {}
    for mixer in mixers:
        hosted[mixer.name] = (mixer, *hosted.get(mixer.name, ()))
    return hosted


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = list_folder(path)
    if not files:
        raise ArtefactError(f"there is no mixer (*.safetensors) in folder {path}; name a file, or another folder")
    return files


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, sorted(names)))
