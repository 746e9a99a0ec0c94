"""Keeps an event that repeats from filling the log: a number of lines a minute, then one that counts the rest.

The last line before the silence says for how long it will last (`held_s`), so nobody takes silence for health. The
count follows with the first line of any kind after that minute, or when the program ends. An error raised at another
place in the code is another event; what ends a program (CRITICAL) is never held back.
"""

import copy
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

WINDOW_S = 60.0
MOST_WARNINGS = 20
"""Lines of one event in a window, for warnings and errors."""
MOST_NOTES = 600
"""The same for progress, which programs pace themselves, unless peers cause it."""

_MAX_EVENTS = 1000
_MAX_LENGTH = 200
_LABELS = ("rank", "worker")
_EVENT = re.compile(r"\w+(?=$| \w+=)")

_Key = tuple[str, int, str, str]


@dataclass(slots=True)
class _Window:
    ends_s: float
    labels: dict[str, object]
    most: int
    seen: int = 0


class Repeats:
    """Decides which lines are written. Not safe for threads: handlers call it under their lock.

    Args:
        clock: seconds, never going back.
        max_events: different events that are counted at once; one more forgets the oldest, after telling its count.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, max_events: int = _MAX_EVENTS) -> None:
        self._clock = clock
        self._max_events = max_events
        self._windows: OrderedDict[_Key, _Window] = OrderedDict()  # the one that ends first comes first

    def admit(self, record: logging.LogRecord) -> list[logging.LogRecord]:
        """Answer what is to be written now that a line has come: counts that are due, then the line or nothing."""
        now_s = self._clock()
        due = self._end_until(now_s)
        if record.levelno >= logging.CRITICAL:
            return [*due, record]
        key = _key(record)
        if key not in self._windows:
            due += self._make_room()
            self._windows[key] = _open_window(record, now_s)
        window = self._windows[key]
        window.seen += 1
        if window.seen < window.most:
            return [*due, record]
        return [*due, _with(record, held_s=round(window.ends_s - now_s, 1))] if window.seen == window.most else due

    def drain(self) -> list[logging.LogRecord]:
        """Answer all counts that were not told yet, for the end of the program."""
        return self._end_until(float("inf"))

    def _end_until(self, now_s: float) -> list[logging.LogRecord]:
        due: list[logging.LogRecord] = []
        while self._windows and next(iter(self._windows.values())).ends_s <= now_s:
            due += _count(*self._windows.popitem(last=False))
        return due

    def _make_room(self) -> list[logging.LogRecord]:
        return _count(*self._windows.popitem(last=False)) if len(self._windows) >= self._max_events else []


def _open_window(record: logging.LogRecord, now_s: float) -> _Window:
    # The record itself is not kept: its traceback would hold the batches of all frames in memory.
    labels = {label: getattr(record, label) for label in _LABELS if hasattr(record, label)}
    most = MOST_WARNINGS if record.levelno >= logging.WARNING else MOST_NOTES
    return _Window(ends_s=now_s + WINDOW_S, labels=labels, most=most)


def _key(record: logging.LogRecord) -> _Key:
    return record.name, record.levelno, _event(record), _origin(record)


def _event(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments that cannot be written raise anything; the handler will complain
        return f"{record.filename}:{record.lineno}"
    event = _EVENT.match(text)
    return event[0] if event else text[:_MAX_LENGTH]  # a library's sentence


def _origin(record: logging.LogRecord) -> str:
    """Say where an exception was raised, without its message, of which a peer may send thousands."""
    kind, _, traceback = record.exc_info or (None, None, None)
    if kind is None:
        return ""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else ""
    return f"{kind.__name__} {place}"


def _with(record: logging.LogRecord, **fields: object) -> logging.LogRecord:
    changed = copy.copy(record)
    vars(changed).update(fields)
    return changed


def _count(key: _Key, window: _Window) -> list[logging.LogRecord]:
    held = window.seen - window.most
    if held <= 0:
        return []
    name, level, event, _ = key
    fields = {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "msg": event}
    return [logging.makeLogRecord({**fields, **window.labels, "repeated": held})]
