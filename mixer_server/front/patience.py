"""How long peers may take: one thread that looks after everything that others have promised to do soon."""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_CHECK_S = 0.25
"""Longest between two looks, seconds; sooner where the shortest patience is shorter."""


class Patience:
    """Calls back for what has not happened in time. Safe for threads."""

    def __init__(self, shortest_s: float) -> None:
        self._check_s = min(_CHECK_S, shortest_s / 8)
        self._lock = threading.Lock()
        self._awaited: dict[object, tuple[float, Callable[[], object]]] = {}
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="patience", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def close(self) -> None:
        """Look no longer."""
        self._is_closed.set()
        self._thread.join()

    def expect(self, key: object, seconds: float, overdue: Callable[[], object]) -> None:
        """Call `overdue`, which must be quick, unless `met` is called for the same key within `seconds`."""
        deadline = (time.monotonic() + seconds, overdue)
        with self._lock:
            self._awaited[key] = deadline

    def met(self, key: object) -> bool:
        """Say that it has happened; False if that was too late, or never expected."""
        with self._lock:
            return self._awaited.pop(key, None) is not None

    def _watch(self) -> None:
        while not self._is_closed.wait(self._check_s):
            now_s = time.monotonic()
            with self._lock:
                late = [(key, overdue) for key, (deadline_s, overdue) in self._awaited.items() if deadline_s <= now_s]
                for key, _ in late:
                    del self._awaited[key]
            for _, overdue in late:
                try:
                    overdue()
                except Exception:  # the edge of this thread: others are waited for too
                    log.exception("patience_failed")
