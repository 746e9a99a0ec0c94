"""Loaders taking turns on one core: while one is measured, the workers of the others are stopped."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from benchmarks.input_loaders import Batches
from benchmarks.machine import process_cpu_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What some batches took."""

    images: int
    """How many came."""
    cpu_s: float
    """Processor time of this process and the loader's workers, in seconds."""
    wall_s: float
    """Time that passed, in seconds."""


class Runner:
    """A loader that was started, with its workers stopped between turns.

    A worker prepares as many batches in a turn as the turn takes out: it ends on the arrival of a batch.
    """

    def __init__(self, batches: Batches, workers: list[int]) -> None:
        self._batches = batches
        self._workers = workers

    def take_turn(self, num_batches: int) -> Turn:
        """Load some batches and measure that."""
        self.signal_workers(signal.SIGCONT)
        cpu_s, wall_s = self._cpu_s(), time.perf_counter()
        images = sum(len(next(self._batches)) for _ in range(num_batches))
        turn = Turn(images=images, cpu_s=self._cpu_s() - cpu_s, wall_s=time.perf_counter() - wall_s)
        self.signal_workers(signal.SIGSTOP)
        return turn

    def signal_workers(self, number: signal.Signals) -> None:
        """Stop or continue the workers."""
        for worker in self._workers:
            os.kill(worker, number)

    def _cpu_s(self) -> float:
        return time.process_time() + sum(map(process_cpu_s, self._workers))


@contextmanager
def running(start: Callable[[], Batches]) -> Iterator[Runner]:
    """Start a loader and its workers, wait for the first batch, and close it all after the block."""
    others = {child.pid for child in multiprocessing.active_children()}
    batches = start()
    try:
        next(batches)
        workers = [child.pid for child in multiprocessing.active_children() if child.pid not in others]
        runner = Runner(batches, [worker for worker in workers if worker is not None])
        runner.signal_workers(signal.SIGSTOP)
        try:
            yield runner
        finally:
            runner.signal_workers(signal.SIGCONT)  # a stopped process does not end
    finally:
        batches.close()
