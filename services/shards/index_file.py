"""What an `index.json` says about shards.

Layouts of other tools are understood too: an entry {"shard", "samples", "bytes", "sha256"} counts wherever it stands
under "splits"; all but "shard" and "samples" may be missing.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from samix.errors import ShardError
from services.shards.remote import FetchFailed, Patience, fetch
from services.shards.shard import is_remote, shard_name

INDEX_NAME = "index.json"

_ABSENT_STATUSES = (403, 404, 410)  # S3 answers 403 for a file that is not there


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexEntry:
    """One shard of an index."""

    samples: int
    """Number of samples, at least 1."""
    num_bytes: int | None
    """Size of the file; None where the index does not say."""
    sha256: str
    """Checksum, 64 hexadecimal digits; empty where the index does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """A parsed index."""

    source: str
    """Where it was read."""
    entries: Mapping[str, Mapping[str, Any]]
    """As written, by the name of the shard."""
    classes: tuple[str, ...]
    """Name of each label; empty where the index does not say."""

    def entry(self, address: str) -> IndexEntry | None:
        """Look a shard up; None if it is not listed.

        Raises:
            ShardError: if its number of samples makes no sense.
        """
        name = shard_name(address)
        listed = self.entries.get(name)
        if listed is None:
            return None
        samples, num_bytes, sha256 = listed.get("samples"), listed.get("bytes"), listed.get("sha256")
        if not isinstance(samples, int) or samples < 1:
            raise ShardError(f"{self.source} gives {samples!r} samples for {name}; write it again, or delete it")
        return IndexEntry(
            samples=samples,
            num_bytes=num_bytes if isinstance(num_bytes, int) else None,
            sha256=sha256.lower() if isinstance(sha256, str) else "",
        )


def read_index(source: str, patience: Patience, *, must_exist: bool = False) -> Index | None:
    """Read an index from a file, a URL or a `pipe:` command; None if there is none.

    Raises:
        ShardError: if it is no JSON, cannot be fetched, or is missing though it must exist.
    """
    text = _fetched(source, patience, must_exist=must_exist) if is_remote(source) else _read(source)
    if text is None and must_exist:
        raise ShardError(f"there is no index {source}; check its path or address")
    if text is None:
        return None
    try:
        content = json.loads(text)
    except ValueError as err:
        raise ShardError(f"{source} is not JSON ({err}); write it again with `samix shards`, or delete it") from err
    content = content if isinstance(content, dict) else {}
    classes = content.get("classes")
    return Index(
        source=source,
        entries={entry["shard"]: entry for entry in _entries(content.get("splits"))},
        classes=tuple(map(str, classes)) if isinstance(classes, list) else (),
    )


def _read(source: str) -> bytes | None:
    path = Path(source)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise ShardError(f"{source} cannot be read ({err.strerror}); check its permissions") from err


def _fetched(source: str, patience: Patience, *, must_exist: bool) -> bytes | None:
    with TemporaryDirectory(prefix="samix-index-") as folder, FileIO(Path(folder) / INDEX_NAME, "w+") as file:
        try:
            fetch(source, file, patience=patience, stop=threading.Event())
        except FetchFailed as err:
            if err.status in _ABSENT_STATUSES and not must_exist:
                return None
            raise
        file.seek(0)
        return file.readall()


def _entries(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from _entries(item)
    elif isinstance(node, dict):
        if isinstance(node.get("shard"), str):
            yield node
        else:
            yield from _entries(list(node.values()))
