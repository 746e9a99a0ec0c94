"""Threads that encode batches while the caller trains: libjpeg and torch run without Python's lock."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from samix.errors import InputError, MixerCancelled

NUM_THREADS = 2
"""Encode about 10,000 images of 224 px a second."""


class EncodingThreads:
    """Runs jobs on a few threads, started at first use. Its queue is as long as its caller has batches under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._process_id: int | None = None
        self._is_closed = False

    def __reduce__(self) -> tuple:
        return EncodingThreads, ()

    def run(self, job: Callable[[], None], fail: Callable[[Exception], None]) -> None:
        """Run `job` soon; `fail` hears why it failed or was dropped by `close`.

        Raises:
            InputError: in a fork of the process whose threads they are.
        """
        if self._was_forked():
            raise InputError("the mixer was used before this process was forked; connect in the worker")
        with self._lock:
            if self._is_closed:
                fail(_closed())
                return
            if self._executor is None:
                self._executor = ThreadPoolExecutor(NUM_THREADS, "encode")
                self._process_id = os.getpid()
            running = self._executor.submit(job)
        running.add_done_callback(lambda done: _report(done, fail))

    def close(self) -> None:
        """Drop what waits, and end the threads after what they are at."""
        if self._was_forked():
            return  # the threads are the parent's
        with self._lock:
            self._is_closed = True
            executor = self._executor
        if executor is not None:
            executor.shutdown(cancel_futures=True)

    def _was_forked(self) -> bool:
        return self._process_id not in (None, os.getpid())


def _report(done: Future[None], fail: Callable[[Exception], None]) -> None:
    if done.cancelled():
        fail(_closed())
    elif isinstance(error := done.exception(), Exception):
        fail(error)


def _closed() -> MixerCancelled:
    return MixerCancelled("the mixer was closed before the batch was sent; connect again")
