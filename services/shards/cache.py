"""Whole remote shards in a folder that all processes of a machine share.

    NAME.partial    being fetched; whoever fetches holds an exclusive lock on it, others wait for NAME.shard
    NAME.shard      complete and checked; whoever reads it holds a shared lock, so that it is not removed meanwhile

Locks are the kernel's (flock) and end with their process: a killed fetch leaves a partial file that nobody holds, which
the next one takes over. Only files with these endings are ever removed.
"""

import fcntl
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from io import FileIO
from pathlib import Path

from samix.errors import ConfigError, ShardError
from services.shards.remote import FetchFailed, Patience, fetch
from services.shards.shard import Shard, shard_name
from services.shards.tar import inspect_file

log = logging.getLogger(__name__)

_COMPLETE, _PARTIAL = ".shard", ".partial"
_POLL_S = 0.05
_MOMENT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCache:
    """Fetches shards once per machine. Safe for threads and processes."""

    folder: Path = Path("~/.cache/samix/shards")
    """Where shards are kept; made when the first one is fetched."""
    limit_bytes: int = 200 * 10**9
    """The shards used longest ago leave when more is held. What is being fetched or read at that moment stays."""
    patience: Patience = field(default_factory=Patience)
    """How long a fetch may take."""

    def open(self, shard: Shard, *, stop: threading.Event | None = None) -> FileIO:
        """Open a remote shard for reading, fetched if need be. It stays on disk at least until the file is closed.

        Args:
            shard: what to open.
            stop: when set, a fetch is given up soon.

        Raises:
            FetchFailed: if it cannot be fetched, or differs from its index.
            ConfigError: if the folder cannot be written, or the shard exceeds `limit_bytes`.
        """
        path = self._path(shard)
        try:
            file = _open_complete(path) or self._open_fetched(shard, path, stop)
            os.utime(file.fileno())  # used last
        except OSError as err:
            sentence = (
                f"cannot use the cache {path.parent} ({err.strerror or err}); choose another folder for the cache"
            )
            raise ConfigError(sentence) from err
        return file

    def holds(self, shard: Shard) -> bool:
        """Whether a shard is there without fetching it."""
        return self._path(shard).exists()

    def _path(self, shard: Shard) -> Path:
        return _path_in(self.folder, shard.address, shard.sha256 or str(shard.num_bytes or ""))

    def _open_fetched(self, shard: Shard, path: Path, stop: threading.Event | None) -> FileIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(_PARTIAL)
        waiting = _Waiting(shard, partial, limit_s=2 * self.patience.silence_s + sum(self.patience.pauses_s))
        while True:
            file = FileIO(partial, "r+", opener=_open_or_make)
            try:
                is_ours = _lock(file, fcntl.LOCK_EX) and _is_same(file, partial)
                # Also when the partial file is ours: its last owner may have completed it just before.
                complete = _open_complete(path)
                if complete is None and is_ours:
                    self._fill(shard, file, partial, path, stop)
                    return file
            except BaseException:
                file.close()
                raise
            if complete is not None and is_ours:
                partial.unlink()
            file.close()
            if complete is not None:
                return complete
            waiting.pause(stop)

    def _fill(self, shard: Shard, file: FileIO, partial: Path, path: Path, stop: threading.Event | None) -> None:
        started = time.monotonic()
        try:
            self._make_room(shard, shard.num_bytes or 0, partial)
            fetch(shard.address, file, patience=self.patience, check=lambda file: _check(shard, file), stop=stop)
            size = os.fstat(file.fileno()).st_size
            self._make_room(shard, size, partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        fcntl.flock(file, fcntl.LOCK_SH)
        file.seek(0)
        log.info(
            "shard_fetched",
            extra={"shard": shard.address, "bytes": size, "seconds": round(time.monotonic() - started, 2)},
        )

    def _make_room(self, shard: Shard, size: int, partial: Path) -> None:
        if size > self.limit_bytes:
            raise ConfigError(
                f"{shard} is {size / 1e9:.3g} GB, but the cache may hold {self.limit_bytes / 1e9:.3g}; raise cache-gb"
            )
        files = sorted(self._files(partial))
        total = size + sum(num_bytes for _, num_bytes, _ in files)
        for _, num_bytes, path in files:
            if total <= self.limit_bytes:
                return
            if _remove_unused(path):
                total -= num_bytes
        if total > self.limit_bytes:
            log.warning("cache_over_its_limit", extra={"cache": str(self.folder), "bytes": total})

    def _files(self, own: Path) -> Iterator[tuple[int, int, Path]]:
        """List time of last use, size and path of what the cache holds."""
        for entry in os.scandir(own.parent):
            if entry.name.endswith((_COMPLETE, _PARTIAL)) and entry.name != own.name:
                try:
                    status = entry.stat()
                except FileNotFoundError:  # another process was faster
                    continue
                yield status.st_mtime_ns, status.st_size, Path(entry.path)


class _Waiting:
    """Waits while another process fetches, as long as that one makes progress."""

    def __init__(self, shard: Shard, partial: Path, *, limit_s: float) -> None:
        self._shard = shard
        self._partial = partial
        self._limit_s = limit_s
        self._size = -1
        self._changed_at = time.monotonic()

    def pause(self, stop: threading.Event | None) -> None:
        """Wait a moment.

        Raises:
            FetchFailed: if nothing has happened for too long.
        """
        try:
            size = self._partial.stat().st_size
        except FileNotFoundError:  # completed, or given up
            size = -1
        if size != self._size:
            self._size, self._changed_at = size, time.monotonic()
        if time.monotonic() - self._changed_at > self._limit_s:
            raise FetchFailed(
                f"another process fetches {self._shard} to {self._partial} and has had no byte for "
                f"{self._limit_s:g} s; end that process"
            )
        if (stop or threading.Event()).wait(_POLL_S):
            raise FetchFailed(f"{self._shard} was not waited for: no longer wanted", may_pass=False)


@lru_cache(maxsize=100_000)  # asked for with every sample
def _path_in(folder: Path, address: str, promise: str) -> Path:
    # With checksum or size, so that a set that was written anew under the old addresses is fetched anew.
    digest = hashlib.sha256(f"{address}\n{promise}".encode(errors="surrogateescape")).hexdigest()[:16]
    name = re.sub(r"[^\w.-]", "_", shard_name(address), flags=re.ASCII)[-80:]
    return folder.expanduser() / f"{digest}-{name}{_COMPLETE}"


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o644)


def _open_complete(path: Path) -> FileIO | None:
    try:
        file = FileIO(path)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + _MOMENT_S
    while not (is_locked := _lock(file, fcntl.LOCK_SH)) and time.monotonic() < deadline:
        time.sleep(0.001)  # it is being published or removed, which takes no longer
    if is_locked and _is_same(file, path):
        return file
    file.close()
    return None


def _remove_unused(path: Path) -> bool:
    try:
        with FileIO(path) as file:
            is_unused = _lock(file, fcntl.LOCK_EX) and _is_same(file, path)
            if is_unused:
                path.unlink()
                log.info("shard_left_the_cache", extra={"file": path.name})
            return is_unused
    except FileNotFoundError:
        return True


def _lock(file: FileIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_same(file: FileIO, path: Path) -> bool:
    """Whether a file that was opened before it was locked still has its name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _check(shard: Shard, file: FileIO) -> None:
    try:
        shard.check_size(os.fstat(file.fileno()).st_size)
        file.seek(0)
        if not shard.sha256:
            inspect_file(file, shard.address)  # a page that says "not found" with status 200 must not enter the cache
    except FetchFailed:
        raise
    except ShardError as err:
        raise FetchFailed(str(err)) from err
    if shard.sha256 and (actual := hashlib.file_digest(file, "sha256").hexdigest()) != shard.sha256:
        raise FetchFailed(f"{shard} has checksum {actual}, its index says {shard.sha256}; write shard and index again")
