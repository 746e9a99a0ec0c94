"""Two-stage stopping: the first SIGTERM or Ctrl-C asks, the second one means it."""

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked this program to stop."""

    def __init__(self, repeats_s: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._repeats_s = repeats_s
        self._clock = clock
        self._asked_at = 0.0
        # Not an Event: its lock is not reentrant, and a handler may interrupt the very thread that holds it.
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.signal: int | None = None
        """Number of the signal that asked; None as long as nobody did."""

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until somebody asks; answers the number of the signal. For one caller, the main thread.

        Args:
            timeout_s: longest to wait, in seconds; None waits for ever. Nobody asked in that time: the answer is None.
        """
        with suppress(queue.Empty):
            return self._signals.get(timeout=timeout_s)

    def receive(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002 - a handler's signature
        """Take a signal: the first one is remembered, the second one ends the process with 128 + number."""
        if self.signal == number and self._clock() - self._asked_at < self._repeats_s:
            return
        if self.signal is not None:
            os.write(2, f"second {signal.Signals(number).name}: exiting without waiting\n".encode())
            os._exit(128 + number)
        self.signal, self._asked_at = number, self._clock()
        self._signals.put(number)


@contextmanager
def stop_on_signals(*, repeats_s: float = 0.0) -> Iterator[StopRequest]:
    """Turn SIGTERM and SIGINT into a `StopRequest` inside the block; for the main thread only.

    Args:
        repeats_s: time in which the same signal again is the same request: one that reaches a whole process group
            reaches torchrun too, which passes it on.
    """
    request = StopRequest(repeats_s)
    previous = {number: signal.signal(number, request.receive) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
