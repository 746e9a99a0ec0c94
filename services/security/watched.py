"""A value that is read from files, and again whenever one of them changes; a bad change keeps the value before it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from samix.errors import InputError

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0  # a look costs microseconds, but there may be thousands of connections a second

ValueT = TypeVar("ValueT")
_Stamp = tuple[int, int, int] | None


class Watched(Generic[ValueT]):
    """Looks at its files when its value is asked for, once a second at most. Safe for threads."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        load: Callable[[], ValueT],
        value: ValueT,
        stamps: Sequence[_Stamp],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._name = name
        self._paths = paths
        self._load = load
        self._value = value
        self._stamps = stamps
        self._clock = clock
        self._lock = threading.Lock()
        self._look_at_s = clock() + _INTERVAL_S
        self._refusal: str | None = None

    @property
    def value(self) -> ValueT:
        """What the files say, or said when they were last right."""
        # One caller looks, the others take what there is: none waits for a disk.
        if self._clock() >= self._look_at_s and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    @property
    def is_stale(self) -> bool:
        """Whether the files have changed into something that cannot be used."""
        self.value  # noqa: B018 - looks
        return self._refusal is not None

    def _look(self) -> None:
        self._look_at_s = self._clock() + _INTERVAL_S
        stamps = _stamps(self._paths)
        # What was refused is tried again unchanged: new permissions, or a free file descriptor, leave no such mark.
        if stamps == self._stamps and self._refusal is None:
            return
        self._stamps = stamps
        try:
            self._value, self._refusal = self._load(), None
        except (InputError, OSError) as error:
            self._refuse(str(error))
            return
        log.info("security_files_reloaded", extra={"what": self._name})

    def _refuse(self, reason: str) -> None:
        if reason != self._refusal:
            log.error("security_files_refused", extra={"what": self._name, "reason": reason, "kept": "the last"})
        self._refusal = reason


def watch(
    name: str, paths: Sequence[Path], load: Callable[[], ValueT], *, clock: Callable[[], float] = time.monotonic
) -> Watched[ValueT]:
    """Read a value, and watch the files that it is made of.

    Args:
        name: of the value, for the log.
        paths: the files.
        load: reads them.
        clock: seconds that only grow.

    Raises:
        InputError: what `load` raises now; later it is logged, and the value stays.
    """
    stamps = _stamps(paths)  # before they are read: what changes meanwhile is seen at the next look
    return Watched(name, paths, load, load(), stamps, clock=clock)


def _stamps(paths: Sequence[Path]) -> list[_Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
