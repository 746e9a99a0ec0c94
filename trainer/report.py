"""What a run leaves for people: log.jsonl as it goes, curves.png and summary.json at the end. Rank 0 writes."""

import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from trainer.loop import Step
from trainer.world import World

log = logging.getLogger(__name__)

Row = dict[str, Any]


class RunLog:
    """Appends events to log.jsonl, one JSON object a line, and remembers them for the curves."""

    def __init__(self, folder: Path, *, is_writer: bool) -> None:
        self._path = folder / "log.jsonl"
        self._is_writer = is_writer
        self._started = time.monotonic()
        self._is_open = False
        self.rows: list[Row] = []

    def reopen(self, last_epoch: int) -> None:
        """Take up the log of a run that ended early, up to and with an epoch; what came after is done again."""
        rows = read_log(self._path) if self._path.exists() else []
        self.rows = [row for row in rows if row["epoch"] <= last_epoch]
        self._started -= self.rows[-1]["seconds"] if self.rows else 0.0

    @property
    def seconds(self) -> float:
        """Time since the run began, that before it was resumed included."""
        return time.monotonic() - self._started

    def write(self, event: str, **fields: Any) -> None:
        """Add an event, such as "step" or "epoch"."""
        row = {"event": event, "seconds": round(self.seconds, 3), **fields}
        is_first, self._is_open = not self._is_open, True
        self.rows.append(row)
        if self._is_writer:
            with self._path.open("w" if is_first else "a") as file:
                file.writelines(json.dumps(line) + "\n" for line in (self.rows if is_first else [row]))

    def of(self, event: str) -> list[Row]:
        """The events of one kind so far."""
        return [row for row in self.rows if row["event"] == event]


def read_log(path: Path) -> list[Row]:
    """Read what a RunLog wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def follow(
    steps: Iterable[Step], *, epoch: int, total: int, every: int, run_log: RunLog, world: World
) -> Iterator[Step]:
    """Pass steps through while showing them: a bar on a terminal, else a log line every `every` steps."""
    on_terminal = world.is_main and sys.stderr.isatty()
    bar = tqdm(total=total, desc=f"epoch {epoch + 1}", unit="step", disable=not on_terminal, leave=False)
    window: list[Step] = []
    with bar:
        for number, step in enumerate(steps, start=1):
            window.append(step)
            bar.update()
            if number % every == 0:
                row = _average(window, epoch=epoch, step=number, world_size=world.size)
                run_log.write("step", **row)
                bar.set_postfix(loss=row["loss"], images_per_s=row["images_per_s"])
                if world.is_main and not on_terminal:
                    eta_s = (total - number) * sum(s.duration_s for s in window) / len(window)
                    log.info("step", extra={**row, "of": total, "epoch_eta_s": round(eta_s)})
                window = []
            yield step


def average_figures(steps: Sequence[Step]) -> dict[str, float]:
    """Average what else the method measured."""
    return {name: round(fmean(step.figures[name] for step in steps), 4) for name in steps[0].figures}


def write_summary(path: Path, summary: Row) -> None:
    """Write the summary in one piece: whoever waits for the file finds it whole."""
    temporary = path.with_suffix(".json.partial")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    temporary.replace(path)


def draw_curves(path: Path, run_log: RunLog, title: str) -> None:
    """Draw loss and accuracy against epochs, and the share of time spent waiting for the mixer."""
    epochs = run_log.of("epoch")
    number = [row["epoch"] for row in epochs]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    loss, accuracy, wait = figure.subplots(1, 3)
    loss.plot(number, [row["loss"] for row in epochs], color="tab:blue", marker=".")
    loss.set_title("training loss (mixed)")
    accuracy.plot(number, [100 * row["top1"] for row in epochs], color="tab:green", marker=".")
    accuracy.set_title("top-1 accuracy, %")
    wait.plot(number, [100 * row["wait_share"] for row in epochs], color="tab:red", marker=".")
    wait.set_title("waiting for the mixer, % of time")
    wait.set_ylim(bottom=0)
    for axes in (loss, accuracy, wait):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def draw_comparison(path: Path, folders: Sequence[Path]) -> None:
    """Draw loss and accuracy of several finished runs into one picture; a run is named after its folder."""
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    for folder in folders:
        epochs = [row for row in read_log(folder / "log.jsonl") if row["event"] == "epoch"]
        number = [row["epoch"] for row in epochs]
        label = f"mixing: {folder.name}"
        loss.plot(number, [row["loss"] for row in epochs], label=label, marker=".")
        accuracy.plot(number, [100 * row["top1"] for row in epochs], label=label, marker=".")
    loss.set(title="training loss (mixed labels cost more)", xlabel="epoch")
    accuracy.set(title="test accuracy, %", xlabel="epoch")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _average(steps: list[Step], *, epoch: int, step: int, world_size: int) -> Row:
    seconds = sum(s.duration_s for s in steps)
    return {
        "epoch": epoch + 1,
        "step": step,
        "loss": round(sum(s.loss for s in steps) / len(steps), 4),
        "lr": round(steps[-1].lr, 6),
        "wait_share": round(sum(s.waited_s for s in steps) / seconds, 4),
        "images_per_s": round(world_size * sum(s.images for s in steps) / seconds, 1),
        **average_figures(steps),
    }
