"""One thread that calls back later, for all waits of a client that nobody sits out.

A `threading.Timer` for each would be a thread for each: hundreds where every batch has a deadline of its own.
"""

import heapq
import logging
import os
import threading
import time
from collections.abc import Callable

from samix.errors import InputError, MixerCancelled

log = logging.getLogger(__name__)

_FEW = 64
"""Cancelled timers that are kept until their time comes, however few others there are."""
_JOIN_S = 1.0
"""Longest `close` waits for a callback that runs right now, seconds."""


class Timer:
    """A call that will be made; `Timers.after` makes it."""

    __slots__ = ("_timers", "at_s", "callback")

    def __init__(self, timers: "Timers", at_s: float, callback: Callable[[], None]) -> None:
        self._timers = timers
        self.at_s = at_s
        self.callback: Callable[[], None] | None = callback
        """None once it ran or was cancelled."""

    def __lt__(self, other: "Timer") -> bool:
        return self.at_s < other.at_s

    def cancel(self) -> None:
        """Let the call not be made, unless it is too late for that."""
        self._timers._cancel(self)


class Timers:
    """Calls back on a thread of its own, started at first use. Safe for threads; pickles as a fresh one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[Timer] = []
        self._num_cancelled = 0
        self._thread: threading.Thread | None = None
        self._process_id: int | None = None
        self._is_closed = False

    def __reduce__(self) -> tuple:
        return Timers, ()

    def after(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back later, on the timers' thread.

        Args:
            delay_s: seconds from now.
            callback: must be quick, for the others wait meanwhile; what it raises is logged.

        Raises:
            InputError: in a fork of the process that used them before.
            MixerCancelled: if they are closed.
        """
        if self._was_forked():
            raise InputError("the client was used before this process was forked; connect in the worker")
        timer = Timer(self, time.monotonic() + delay_s, callback)
        with self._changed:
            if self._is_closed:
                raise MixerCancelled("the client was closed; connect again")
            self._drop_cancelled()
            heapq.heappush(self._heap, timer)
            if self._heap[0] is timer:
                self._changed.notify_all()
            if self._thread is None:
                self._process_id = os.getpid()
                self._thread = threading.Thread(target=self._run, name="mixer-timers", daemon=True)
                self._thread.start()
        return timer

    def close(self, *, call_back: bool = False) -> None:
        """End the thread.

        Args:
            call_back: call back at once what still waits, instead of never; close before what the callbacks act on.
        """
        if self._was_forked():
            return  # the thread is the parent's
        with self._changed:
            self._is_closed = True
            if not call_back:
                self._heap.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread not in (None, threading.current_thread()):
            thread.join(_JOIN_S)

    def _cancel(self, timer: Timer) -> None:
        with self._changed:
            if timer.callback is not None:
                timer.callback = None
                self._num_cancelled += 1

    def _drop_cancelled(self) -> None:
        # Rarely, so that each costs little, and often enough that they never are the most.
        if self._num_cancelled <= max(_FEW, len(self._heap) // 2):
            return
        self._heap = [timer for timer in self._heap if timer.callback is not None]
        heapq.heapify(self._heap)
        self._num_cancelled = 0

    def _run(self) -> None:
        while (callback := self._wait()) is not None:
            try:
                callback()
            except MixerCancelled:  # by `after`, or what the callback acts on: closed meanwhile
                pass
            except Exception:  # the edge of this thread: others still wait for theirs
                log.exception("timer_failed")

    def _wait(self) -> Callable[[], None] | None:
        """Wait for the next call to make; None ends the thread."""
        with self._changed:
            while True:
                wait_s = self._heap[0].at_s - time.monotonic() if self._heap else None
                if wait_s is None and self._is_closed:
                    return None
                if wait_s is None or (wait_s > 0 and not self._is_closed):
                    self._changed.wait(wait_s)
                    continue
                timer = heapq.heappop(self._heap)
                callback, timer.callback = timer.callback, None
                if callback is not None:
                    return callback
                self._num_cancelled -= 1

    def _was_forked(self) -> bool:
        return self._process_id not in (None, os.getpid())
