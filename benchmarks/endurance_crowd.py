"""Threads that all do the same to a server for a while."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

_JOIN_S = 60.0
_HURRIED_JOIN_S = 2.0
_LOOK_S = 0.2

Work = Callable[[int, threading.Event], None]
"""Gets the number of its thread, and an event that tells it to stop."""


class Crowd:
    """Threads that work while a `with` block lasts, and longer only to finish what they have begun."""

    def __init__(self, count: int, work: Work) -> None:
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._work = work
        # Daemons, so that calls under way do not keep a benchmark that was interrupted.
        self._threads = [threading.Thread(target=self._run, args=(number,), daemon=True) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        deadline_s = time.monotonic() + (_JOIN_S if error is None else _HURRIED_JOIN_S)
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if error is None:
            self.check()
            assert not self.num_working, f"{self.num_working} threads did not end within {_JOIN_S:.0f} s"

    @property
    def num_working(self) -> int:
        """Threads that have not ended."""
        return sum(thread.is_alive() for thread in self._threads)

    def check(self) -> None:
        """Raise what a thread has met."""
        if self._errors:
            raise self._errors[0]

    def wait(self, seconds: float, *, every_s: float = 10.0, report: Callable[[float], None] | None = None) -> bool:
        """Let it work.

        Args:
            seconds: how long at most.
            every_s: time between two reports, in seconds.
            report: told how many seconds have passed.

        Returns:
            Whether all threads ended by themselves in that time.
        """
        began_s = time.monotonic()
        next_s = every_s
        while (passed_s := time.monotonic() - began_s) < seconds and self.num_working:
            self.check()
            if report and passed_s >= next_s:
                report(passed_s)
                next_s += every_s
            time.sleep(min(_LOOK_S, seconds))
        self.check()
        return not self.num_working

    def _run(self, number: int) -> None:
        try:
            self._work(number, self._stopping)
        except BaseException as error:  # noqa: BLE001 - the edge of this thread; raised where it is heard
            self._errors.append(error)
