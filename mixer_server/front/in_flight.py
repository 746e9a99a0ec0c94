"""How much is being answered right now, so that a server that drains knows when it is done."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class InFlight:
    """A count that can be waited for. Safe for threads."""

    def __init__(self) -> None:
        self._idle = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """Calls, and batches of streams, that are being answered."""
        return self._count

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the block."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Count one more."""
        with self._idle:
            self._count += 1

    def leave(self) -> None:
        """Count one less."""
        with self._idle:
            self._count -= 1
            self._idle.notify_all()

    def join(self, timeout_s: float, at_most: int = 0) -> bool:
        """Wait until no more than `at_most` are being answered; False if that takes longer than `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: self._count <= at_most, timeout_s)
