"""How much memory requests may hold together, from before their pixels are read until they are answered.

Nobody waits for memory here: those who waited would hold a thread each, and what they had already read.
"""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from samix.errors import BadBatch, MixerOverloaded

_MIB = 1 << 20


class Reservation:
    """Memory that is held from `MemoryBudget.reserve` to `release`, or to the end of its `with`."""

    def __init__(self, budget: "MemoryBudget", num_bytes: int) -> None:
        self._budget = budget
        self._num_bytes = num_bytes
        self._is_released = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    @property
    def num_bytes(self) -> int:
        """Bytes that it holds; 0 once it is released."""
        return self._num_bytes

    def resize(self, num_bytes: int) -> None:
        """Hold so many bytes instead; if that is refused it holds what it held.

        Raises:
            MixerOverloaded: if there is no room for more, with the seconds after which to come again.
            BadBatch: if there never will be.
        """
        self._budget._resize(self, num_bytes)

    def release(self) -> None:
        """Hold nothing any more; again is no error."""
        self._budget._release(self)


class MemoryBudget:
    """Bounds what is held at once. Any thread may reserve, resize and release, in constant time."""

    def __init__(self, max_bytes: int, retry_after_s: Callable[[], float]) -> None:
        """Bound to `max_bytes`; who is refused comes again after `retry_after_s()`."""
        self.max_bytes = max_bytes
        """Most bytes that are held at once."""
        self._retry_after_s = retry_after_s
        self._lock = threading.Lock()
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """Bytes that are held."""
        return self._num_bytes

    def reserve(self, num_bytes: int) -> Reservation:
        """Hold so many bytes until the reservation is released.

        Raises:
            MixerOverloaded: if there is no room for them, with the seconds after which to come again.
            BadBatch: if there never will be.
        """
        reservation = Reservation(self, 0)
        self._resize(reservation, num_bytes)
        return reservation

    def _resize(self, reservation: Reservation, num_bytes: int) -> None:
        assert num_bytes >= 0, f"memory cannot be held for {num_bytes} bytes"
        if num_bytes > self.max_bytes:
            raise BadBatch(
                f"a request that needs {_mib(num_bytes)} MiB does not fit into this server's memory budget of "
                f"{_mib(self.max_bytes)} MiB; send smaller batches"
            )
        with self._lock:
            assert not reservation._is_released, "a reservation that was released cannot be resized"
            more = num_bytes - reservation._num_bytes
            held = self._num_bytes
            if fits := held + more <= self.max_bytes:
                self._num_bytes += more
                reservation._num_bytes = num_bytes
        if not fits:
            # Asked outside of the lock: the answer may take another.
            raise MixerOverloaded(
                f"memory budget is full: {_mib(held)} of {_mib(self.max_bytes)} MiB are held, "
                f"no room for {_mib(more)} MiB more",
                self._retry_after_s(),
            )

    def _release(self, reservation: Reservation) -> None:
        with self._lock:
            self._num_bytes -= reservation._num_bytes
            reservation._num_bytes = 0
            reservation._is_released = True


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / _MIB:.3f}".rstrip("0").rstrip(".")
