"""A real `samix train` that takes turns: while another one is measured, it is stopped.

Steps are read from the run's own log, one row each.
"""

import json
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import on_core, process_cpu_s
from services.cli import ProgramFailed
from trainer.children import Child, start_child

Row = dict[str, Any]

SETTLING_STEPS = 2
"""Steps at the start of a turn that do not count: the first holds the pause, the second finds the caches cold."""
_STEP_LIMIT_S = 120.0
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What some steps of one trainer took."""

    step_s: tuple[float, ...]
    """Time of each step, in seconds."""
    waited_s: tuple[float, ...]
    """Part of it in which the step waited for its mixed batch: what `mixer_client_wait_seconds` counts."""
    cpu_s: float
    """Processor time of the trainer in all of them, in seconds."""
    beside_cpu_s: float
    """Processor time that the process on the other core had meanwhile, in seconds."""


class SteppingTrainer:
    """A trainer that was started, and stands still between its turns."""

    def __init__(self, child: Child, rows: "StepRows") -> None:
        self._child = child
        self._rows = rows

    def take_turn(self, num_steps: int, *, beside: int) -> Turn:
        """Let it train for some steps.

        Args:
            num_steps: how many are measured.
            beside: process on the other core.

        Raises:
            ChildFailed: if the trainer ends.
            ProgramFailed: if a step takes longer than two minutes.
        """
        self._child.check_running()
        self._signal(signal.SIGCONT)
        try:
            last = self._next_rows(SETTLING_STEPS)[-1]
            cpu_s, beside_cpu_s = process_cpu_s(self._child.process_id), process_cpu_s(beside)
            rows = self._next_rows(num_steps)
            cpu_s = process_cpu_s(self._child.process_id) - cpu_s
            beside_cpu_s = process_cpu_s(beside) - beside_cpu_s
        finally:
            self._pause()
        ends_s = [row["seconds"] for row in (last, *rows)]
        step_s = tuple(end - start for start, end in pairwise(ends_s))
        return Turn(
            step_s=step_s,
            waited_s=tuple(row["wait_share"] * seconds for row, seconds in zip(rows, step_s, strict=True)),
            cpu_s=cpu_s,
            beside_cpu_s=beside_cpu_s,
        )

    def warm_up(self) -> None:
        """Wait for the first steps, and stop it."""
        self._next_rows(SETTLING_STEPS)
        self._pause()

    def let_end(self) -> None:
        """Continue it for good: a process that stands still does not hear that it should end."""
        self._signal(signal.SIGCONT)

    def _pause(self) -> None:
        if self._signal(signal.SIGSTOP):
            # Takes effect a little later. An end of the trainer instead is left for its owner to find.
            os.waitid(os.P_PID, self._child.process_id, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._rows.skip_all()

    def _signal(self, number: signal.Signals) -> bool:
        if self._child.has_ended:  # and its number may be another's by now
            return False
        os.kill(self._child.process_id, number)
        return True

    def _next_rows(self, count: int) -> list[Row]:
        deadline = time.monotonic() + count * _STEP_LIMIT_S
        rows = self._rows.take(count)
        while len(rows) < count:
            self._child.check_running()
            if time.monotonic() > deadline:
                raise ProgramFailed(
                    f"{count} steps took longer than {count * _STEP_LIMIT_S:.0f} s; use a larger machine"
                )
            time.sleep(_POLL_S)
            rows += self._rows.take(count - len(rows))
        return rows


class StepRows:
    """Reads the rows of steps that a run appends to its log.jsonl."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._waiting: deque[Row] = deque()

    def take(self, count: int) -> list[Row]:
        """Return the next rows, at most so many."""
        self._read()
        return [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]

    def skip_all(self) -> None:
        """Forget the rows that are there."""
        self._read()
        self._waiting.clear()

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            written = file.read()
        whole = written[: written.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._waiting += [row for row in map(json.loads, whole.splitlines()) if row["event"] == "step"]


@contextmanager
def stepping(flags: Sequence[str], core: int | None, out: Path, log: Path) -> Iterator[SteppingTrainer]:
    """Start `samix train` on one core, wait for its first steps and stop it; it is gone after the block.

    Args:
        flags: of `samix train`, recipe first; a row is logged for each step whatever they say.
        core: where it runs.
        out: folder of the run.
        log: what it prints.

    Raises:
        ChildFailed: if it ends before.
        ProgramFailed: if a step takes longer than two minutes.
    """
    with ExitStack() as running:
        args = ["train", *flags, "--log-every", "1", "--out", str(out)]
        with on_core(core):  # a child stays on the core it was started on
            child = running.enter_context(start_child("samix", args, log))
        trainer = SteppingTrainer(child, StepRows(out / "log.jsonl"))
        trainer.warm_up()
        try:
            yield trainer
        finally:
            trainer.let_end()
