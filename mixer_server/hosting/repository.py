"""Loads mixers from an operator's folders and unloads them, beside the requests that are being answered.

The newest file of a name is served. The version before it stays in memory for requests that name it, whether its file
is still there or was written over.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

from mixer_server.hosting.hosting import Hosting
from mixer_server.hosting.mixer_files import Load, load_copy
from mixer_server.hosting.registry import Origin
from mixer_server.hosting.shelf import KnownFile, Shelf
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from samix.errors import ArtefactError, InputError, MixerUnavailable
from samix.mixing.frozen import FrozenMixer

log = logging.getLogger(__name__)

_TURN_S = 60.0


class State(StrEnum):
    """What became of a mixer file; `MixerState` of the contract."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One version of a mixer, or a file that could not become one. Its text is encodable, whatever files are called."""

    name: str
    """The mixer's; the file's without its suffix where it does not say which it holds."""
    version: str = ""
    """Of its weights; empty where they were never read."""
    file: str = ""
    """Where it comes from; empty for a mixer made in this process."""
    state: State
    """What became of it."""
    reason: str = ""
    """Why it could not be loaded."""


class Repository:
    """Takes mixers from a shelf into service, one at a time. Nothing is looked at before the first call."""

    def __init__(self, shelf: Shelf, hosting: Hosting, load: Load, *, keep_versions: int) -> None:
        """Load what is asked for.

        Args:
            shelf: where the files are.
            hosting: what takes mixers into service.
            load: reads a mixer from a file.
            keep_versions: most versions of one mixer in memory, the newest included.
        """
        self._shelf = shelf
        self._hosting = hosting
        self._registry = hosting.registry
        self._load = load
        self._keep_versions = keep_versions
        self._turn = threading.Lock()
        self._is_closed = False

    def entries(self) -> list[Entry]:
        """List every file, and every hosted version that no longer is what its file holds; by name and file."""
        entries = [self._describe(file) for file in self._shelf.files]
        told = {(entry.name, entry.version) for entry in entries}
        for mixer in self._registry.mixers:
            if (mixer.name, mixer.version) not in told:
                origin = self._registry.origin(mixer)
                file = _encodable(str(origin.file)) if origin else ""
                state = self._state(mixer.name, mixer.version)
                entries.append(Entry(name=mixer.name, version=mixer.version, file=file, state=state))
        return sorted(entries, key=lambda entry: (entry.name, entry.file, entry.version))

    def refresh(self) -> None:
        """Look for new files and load nothing; while something loads, which has begun with a look, do not even that."""
        if self._turn.acquire(blocking=False):
            try:
                self._shelf.refresh()
            finally:
                self._turn.release()

    def scan(self) -> None:
        """Make what is hosted follow the files: load what is new, unload what is gone.

        A file that cannot be loaded is logged once and tried again when it changes; what was read from it before stays.
        So does everything while a folder cannot be listed.

        Raises:
            MixerUnavailable: if another scan takes too long, or the repository is closed.
        """
        with self._one_at_a_time():
            if not self._shelf.refresh():
                return
            for name in sorted({file.name for file in self._shelf.files}):
                if self._is_closed:
                    return
                self._follow(name)
            self._unload_orphans()

    def load(self, name: str) -> FrozenMixer:
        """Load the newest file of a mixer, and make it the newest version.

        Args:
            name: the one inside the file, or else that of the file without its suffix.

        Raises:
            MixerNotFound: if no file holds a mixer of that name.
            MixerUnavailable: if other loads take too long, the folders cannot be listed, or the repository is closed.
            ArtefactError: if the file cannot be loaded.
        """
        with self._one_at_a_time():
            if not self._shelf.refresh():
                raise MixerUnavailable(f"the repository cannot be read: {self._shelf.trouble}")
            file = self._shelf.choose(name)
            mixer = self._try_load(file)
            if mixer is None:
                [reason] = [known.reason for known in self._shelf.files if known.path == file.path]
                raise ArtefactError(reason)
            return mixer

    def unload(self, name: str, version: str = "") -> int:
        """Unload a mixer; requests that were accepted are still answered.

        Args:
            name: of the mixer.
            version: the one to unload; empty unloads all.

        Returns:
            How many versions were unloaded.

        Raises:
            MixerNotFound: if it is not hosted.
            MixerUnavailable: if loads take too long, or the repository is closed.
        """
        with self._one_at_a_time():
            self._registry.find(name, version)
            return self._hosting.let_go(name, version)

    def close(self) -> None:
        """Load nothing more; a load that has begun goes on to its end."""
        self._is_closed = True

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=_TURN_S):
            raise MixerUnavailable(f"other mixers have been loading for {_TURN_S:.0f} s; try again later")
        try:
            if self._is_closed:
                raise MixerUnavailable(SHUTTING_DOWN)
            yield
        finally:
            self._turn.release()

    def _follow(self, name: str) -> None:
        for file in self._shelf.newest_first(name):
            if not file.reason and self._try_load(file):
                return
            if any(self._comes_from(mixer, file) for mixer in self._registry.versions(name)):
                return  # what the file held before it was damaged, which no older file may replace

    def _try_load(self, file: KnownFile) -> FrozenMixer | None:
        for hosted in self._registry.versions(file.name):
            if hosted.version == file.version:
                self._registry.add(hosted)
                return hosted
        file = replace(file, is_loading=True, reason="")
        self._shelf.note(file)
        started_s = time.monotonic()
        try:
            mixer = load_copy(file.path, self._load)
            file = replace(file, name=mixer.name, version=mixer.version)
            self._shelf.note(file)
            hosted = self._hosting.take_in(mixer, Origin(file=file.path, read_s=time.monotonic() - started_s))
        except (InputError, OSError) as error:
            return self._give_up(file, str(error))
        except Exception as error:  # a mixer that breaks, or fills the memory, must not end the loading of others
            log.exception("mixer_broken", extra={"file": str(file.path)})
            return self._give_up(file, f"{type(error).__name__}: {error}")
        self._shelf.note(replace(file, is_loading=False))
        self._drop_surplus(hosted.name)
        return hosted

    def _give_up(self, file: KnownFile, reason: str) -> None:
        self._shelf.note(replace(file, version="", is_loading=False, reason=reason))
        self._hosting.count_failure(file.name)
        log.warning("mixer_not_loaded", extra={"file": str(file.path), "reason": reason})

    def _drop_surplus(self, name: str) -> None:
        for mixer in self._registry.versions(name)[self._keep_versions :]:
            self._hosting.let_go(name, mixer.version)

    def _unload_orphans(self) -> None:
        for mixer in self._registry.mixers:
            is_from_file = self._registry.origin(mixer) is not None
            if is_from_file and not any(self._holds(file, mixer) for file in self._shelf.files):
                self._hosting.let_go(mixer.name, mixer.version)

    def _holds(self, file: KnownFile, mixer: FrozenMixer) -> bool:
        is_same = file.version == mixer.version or self._comes_from(mixer, file)
        return is_same and file.name == mixer.name

    def _comes_from(self, mixer: FrozenMixer, file: KnownFile) -> bool:
        origin = self._registry.origin(mixer)
        return origin is not None and origin.file == file.path

    def _describe(self, file: KnownFile) -> Entry:
        state = State.FAILED if file.reason else self._state(file.name, file.version)
        if file.is_loading:
            state = State.LOADING
        return Entry(
            name=_encodable(file.name),
            version=file.version,
            file=_encodable(str(file.path)),
            state=state,
            reason=_encodable(file.reason),
        )

    def _state(self, name: str, version: str) -> State:
        if not any(mixer.version == version for mixer in self._registry.versions(name)):
            return State.UNLOADED
        return State.READY if self._hosting.readiness.is_warm(name, version) else State.LOADING


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()  # a file may be called anything, which Python keeps as surrogates
