"""Heat without service: a process that runs a mixer's bare forward at a given pace, connected to nobody."""

import multiprocessing
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from benchmarks.machine import on_core
from benchmarks.paths import Case
from samix.mixing.artefact import load_mixer
from samix.mixing.plan import SAMIX_ALPHA, draw_plan, generator_for
from services.cli import ProgramFailed
from services.malloc import tune_malloc

_ANSWER_S = 120.0
_END_S = 10.0


class Neighbour:
    """The process, seen from outside. It rests but for the time of a `pacing` block."""

    def __init__(self, process: BaseProcess, pace: Connection) -> None:
        self._process = process
        self._pace = pace
        self.passes = 0
        """Of the last `pacing` block."""

    @property
    def process_id(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def wait_ready(self) -> None:
        """Wait until it may be given a pace.

        Raises:
            ProgramFailed: if it ends before, or does not get ready in time.
        """
        self._answer()

    @contextmanager
    def pacing(self, period_s: float) -> Iterator[None]:
        """Let it run a pass every `period_s` seconds until the block ends, the first one at once.

        Raises:
            ProgramFailed: if it has ended.
        """
        self._pace.send(period_s)
        try:
            yield
        finally:
            self._pace.send(None)
            self.passes = self._answer()

    def _answer(self) -> int:
        with suppress(EOFError):
            if self._pace.poll(_ANSWER_S):
                return self._pace.recv()
        raise ProgramFailed("the neighbour of the trainer ended or hangs; what it printed says why")


@contextmanager
def neighbour(artefact: Path, batch_size: int, core: int | None) -> Iterator[Neighbour]:
    """Start the process on one core; it is gone after the block.

    Args:
        artefact: of the mixer.
        batch_size: images of a pass.
        core: where it runs.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=keep_pace, args=(artefact, batch_size, theirs), name="neighbour", daemon=True)
    with on_core(core):  # a child stays on the core it was started on
        process.start()
    theirs.close()
    try:
        found = Neighbour(process, ours)
        found.wait_ready()
        yield found
    finally:
        ours.close()  # which ends it
        process.join(_END_S)
        process.kill()
        process.join()
        process.close()


def keep_pace(artefact: Path, batch_size: int, pace: Connection) -> None:
    """Run passes until the other end of `pace` is closed.

    What comes there is the time from pass to pass in seconds, or None for rest; to each None it answers with the number
    of passes since it rested last. A pass that starts late is made up for, as by a server with a queue.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes its end
    tune_malloc()
    torch.set_num_threads(1)
    case = Case(mixer=load_mixer(str(artefact)), batch_size=batch_size)
    images = case.images()
    plan = draw_plan(batch_size, alpha=SAMIX_ALPHA, generator=generator_for("bench"))
    case.mixer.mask_logits(images, plan)
    with suppress(EOFError):
        pace.send(0)
        while True:
            period_s, due_s, passes = pace.recv(), time.perf_counter(), 0
            while not pace.poll(max(0.0, due_s - time.perf_counter())):
                case.mixer.mask_logits(images, plan)
                passes += 1
                due_s += period_s
            pace.recv()
            pace.send(passes)
