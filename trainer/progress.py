"""Shows how a run goes on: a bar on a terminal, else a line in the log now and then."""

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer.loop import Step
from trainer.metrics import TrainerMetrics
from trainer.report import RunLog
from trainer.tally import EpochTally
from trainer.world import World

log = logging.getLogger(__name__)


def follow(
    steps: Iterable[Step],
    *,
    epoch: int,
    total: int,
    every: int,
    run_log: RunLog,
    world: World,
    tally: EpochTally,
    metrics: TrainerMetrics,
    first_step: int = 0,
    remaining_epochs: int = 0,
) -> Iterator[Step]:
    """Pass steps through while showing them: averages and the time that is left, every `every` steps.

    Args:
        steps: of an epoch, from `first_step` on.
        epoch: number of the epoch, from 0.
        total: steps of an epoch.
        every: steps from one row of the log to the next; rows stand at multiples of it, wherever the run was resumed.
        run_log: gets the rows.
        world: whose main rank speaks.
        tally: to which each step is added before it is passed on, so that a checkpoint made then holds it.
        metrics: told the time that is left.
        first_step: steps of this epoch that are done already.
        remaining_epochs: epochs after this one.
    """
    on_terminal = world.is_main and sys.stderr.isatty()
    bar = tqdm(
        total=total,
        initial=first_step,
        desc=f"epoch {epoch + 1}/{epoch + 1 + remaining_epochs}",
        unit="step",
        disable=not on_terminal,
        leave=False,
    )
    with _lines_above(bar), bar:
        for number, step in enumerate(steps, start=first_step + 1):
            tally.add(step, world_size=world.size)
            bar.update()
            if number % every == 0:
                window = tally.close_window()
                row = {"epoch": epoch + 1, "step": number, "of": total, **window.averages()}
                run_log.write("step", **row)
                step_s = window.seconds / window.steps
                epoch_eta_s = (total - number) * step_s
                run_eta_s = epoch_eta_s + remaining_epochs * _epoch_seconds(run_log, total * step_s)
                metrics.eta.set(run_eta_s)
                _show(bar, row, epoch_eta_s, run_eta_s, is_main=world.is_main)
            yield step


def _lines_above(bar: "tqdm[NoReturn]") -> AbstractContextManager[None]:
    return nullcontext() if bar.disable else logging_redirect_tqdm()


def _epoch_seconds(run_log: RunLog, default: float) -> float:
    """Time from one epoch to the next, evaluation included, once that was seen; the first also holds the start."""
    ends = [row["seconds"] for row in run_log.of("epoch")[-2:]]
    return ends[1] - ends[0] if len(ends) == 2 else default


def _show(bar: "tqdm[NoReturn]", row: dict[str, float], epoch_eta_s: float, run_eta_s: float, *, is_main: bool) -> None:
    if not bar.disable:
        shown = {name: row[name] for name in ("loss", "lr", "images_per_s")}
        bar.set_postfix(shown | {"wait": f"{row['wait_share']:.1%}", "run_eta": tqdm.format_interval(run_eta_s)})
    elif is_main:
        log.info("step", extra={**row, "epoch_eta_s": round(epoch_eta_s), "run_eta_s": round(run_eta_s)})
