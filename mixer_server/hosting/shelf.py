"""What is known of the mixer files in an operator's folders.

Files that hold a mixer of one name are its versions, and the one changed last is the newest (of two changed in the same
nanosecond the one whose path sorts last). Which version is to be served thus depends on the folders alone: a server
that was restarted, and every replica that reads the same folder, agree on it, whatever they have seen before.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mixer_server.hosting.mixer_files import Fingerprint, look, read_name
from samix.errors import MixerNotFound

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """A file with the content that it had when it was last looked at."""

    path: Path
    """Where it is."""
    fingerprint: Fingerprint
    """What tells that content from a later one."""
    name: str
    """Of the mixer; the file's without its suffix where it does not say which it holds."""
    version: str = ""
    """Of the weights; empty until they have been read."""
    is_loading: bool = False
    """Whether it is being read or warmed up."""
    reason: str = ""
    """Why it could not be loaded."""


class Shelf:
    """Files, and folders of them. Any thread may read `files`; one at a time may change them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files: tuple[KnownFile, ...] = ()
        """All files, sorted by path; replaced, never changed."""
        self.trouble = ""
        """Why the folders cannot be listed; empty if they can."""
        self._paths = paths

    def refresh(self) -> bool:
        """Look at the files again; False if a folder cannot be listed, and then nothing is known to have changed."""
        try:
            found = look(self._paths)
        except OSError as error:
            if str(error) != self.trouble:
                log.warning("repository_unreadable", extra={"reason": str(error)})
            self.trouble = str(error)
            return False
        self.trouble = ""
        known = {file.path: file for file in self.files}
        self.files = tuple(_recognise(known.get(path), path, found[path]) for path in sorted(found))
        return True

    def newest_first(self, name: str) -> list[KnownFile]:
        """List the files that hold a mixer of that name."""
        files = [file for file in self.files if file.name == name]
        return sorted(files, key=lambda file: (file.fingerprint.mtime_ns, file.path), reverse=True)

    def choose(self, name: str) -> KnownFile:
        """Choose the newest file of a mixer.

        Args:
            name: the one inside the file, or else that of the file without its suffix. It is only ever compared.

        Raises:
            MixerNotFound: says what there is.
        """
        files = self.newest_first(name) or [file for file in self.files if file.path.stem == name]
        if not files:
            names = ", ".join(sorted({repr(file.name) for file in self.files}))
            raise MixerNotFound(f"no file of the repository holds a mixer called {name!r}; there is {names or 'none'}")
        return files[0]

    def note(self, file: KnownFile) -> None:
        """Remember what became of a file."""
        self.files = tuple(file if other.path == file.path else other for other in self.files)


def _recognise(known: KnownFile | None, path: Path, fingerprint: Fingerprint) -> KnownFile:
    if known and known.fingerprint == fingerprint:
        return known
    name = read_name(path) or (known.name if known else path.stem)
    return KnownFile(path=path, fingerprint=fingerprint, name=name)
