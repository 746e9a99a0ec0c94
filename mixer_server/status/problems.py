"""What went wrong lately: one entry for each kind of failure, with the last sentence that told of it."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from services.logs import fields_of

_MAX_KINDS = 24
_MAX_NAME = 80
_MAX_TEXT = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One kind of failure."""

    source: str
    """Method that was refused, or logger."""
    kind: str
    """gRPC status code, or event of the log."""
    text: str
    """What was said the last time; may quote a client."""
    count: int
    """How often it happened, since it was last forgotten."""
    last_s: float
    """When it happened last, on the clock of `Problems`."""


class Problems:
    """Remembers the kinds that were seen last, each once: a flood of one does not hide the others. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        """Seconds."""
        self._lock = threading.RLock()  # what the garbage collector ends inside may log, hence come back here
        self._kinds: OrderedDict[tuple[str, str], Problem] = OrderedDict()

    def note(self, source: str, kind: str, text: str) -> None:
        """Count one failure."""
        key = (source[:_MAX_NAME], kind[:_MAX_NAME])
        with self._lock:
            count = self._kinds.pop(key).count if key in self._kinds else 0
            self._kinds[key] = Problem(
                source=key[0], kind=key[1], text=text[:_MAX_TEXT], count=count + 1, last_s=self.clock()
            )
            if len(self._kinds) > _MAX_KINDS:
                self._kinds.popitem(last=False)

    def recent(self) -> list[Problem]:
        """List them, newest first; `last_s` is how long ago, in seconds."""
        with self._lock:
            problems = list(reversed(self._kinds.values()))
        now_s = self.clock()
        return [replace(problem, last_s=max(0.0, now_s - problem.last_s)) for problem in problems]


class ProblemHandler(logging.Handler):
    """Notes the warnings and errors of this process's log, without tracebacks."""

    def __init__(self, problems: Problems) -> None:
        super().__init__(logging.WARNING)
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        """Note one record."""
        try:
            self._note(record)
        except Exception:  # noqa: BLE001 - whoever logs does not answer for what it logs
            self.handleError(record)

    def _note(self, record: logging.LogRecord) -> None:
        words = [f"{key}={value}" for key, value in fields_of(record).items()]
        if record.exc_info and record.exc_info[1] is not None:
            words.append(f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}")
        self._problems.note(record.name, record.getMessage(), " ".join(words))
