"""What a run leaves for programs: log.jsonl as it goes, a summary at the end. Rank 0 writes."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from samix.errors import ConfigError
from services.files import naming, replace_text

Row = dict[str, Any]


class RowSink(Protocol):
    """Takes the rows of a run elsewhere, too."""

    def write(self, row: Row) -> None:
        """Take one row."""
        ...

    def reopen(self, epoch: int, step: int) -> None:
        """Forget what came after a place in the run; see `RunLog.reopen`."""
        ...

    def close(self) -> None:
        """End it; nothing is written afterwards."""
        ...


class RunLog:
    """Appends events to log.jsonl, one JSON object a line, and remembers them for the curves."""

    def __init__(self, folder: Path, *, is_writer: bool, sinks: Sequence[RowSink] = ()) -> None:
        self._path = folder / "log.jsonl"
        self._is_writer = is_writer
        self._sinks = sinks
        self._started = time.monotonic()
        self._is_open = False
        self.rows: list[Row] = []

    def reopen(self, epoch: int, step: int = 0) -> None:
        """Take up the log of a run that ended early; what came after the place named is done again, and so leaves it.

        Args:
            epoch: epochs that are done.
            step: steps that are done in the next one.

        Raises:
            ConfigError: if the log is damaged.
        """
        rows = read_log(self._path) if self._path.exists() else []
        self.rows = [row for row in rows if _is_done(row, epoch, step)]
        self._started -= max((row["seconds"] for row in self.rows), default=0.0)
        if self._is_writer:
            replace_text(self._path, "".join(map(_line, self.rows)))
            self._is_open = True
        for sink in self._sinks:
            sink.reopen(epoch, step)

    def clear(self) -> None:
        """Delete the log of an earlier run: a row of it would pass for one of this run when that is resumed."""
        self._path.unlink(missing_ok=True)

    @property
    def seconds(self) -> float:
        """Time since the run began, that before it was resumed included."""
        return time.monotonic() - self._started

    def write(self, event: str, *, epoch: int, **fields: Any) -> None:
        """Add an event, such as "step" or "epoch", of an epoch counted from 1."""
        row = {"event": event, "seconds": round(self.seconds, 3), "epoch": epoch, **fields}
        self.rows.append(row)
        if self._is_writer:
            with naming(self._path), self._path.open("a" if self._is_open else "w") as file:
                file.write(_line(row))
            self._is_open = True
        for sink in self._sinks:
            sink.write(row)

    def of(self, event: str) -> list[Row]:
        """The events of one kind so far."""
        return [row for row in self.rows if row["event"] == event]

    def close(self) -> None:
        """Close the sinks; the file needs none of it."""
        for sink in self._sinks:
            sink.close()


def read_log(path: Path) -> list[Row]:
    """Read what a RunLog wrote. A last line that was cut, as a killed process leaves it, does not count.

    Raises:
        ConfigError: if another line is damaged.
    """
    lines = path.read_text(errors="replace").splitlines()
    rows = [_row(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise ConfigError(f"line {rows.index(None) + 1} of {path} is damaged; delete that line, or the file")
    return [row for row in rows if row is not None]


def write_summary(path: Path, summary: Row) -> None:
    """Write the summary in one piece: whoever waits for the file finds it whole."""
    replace_text(path, json.dumps(summary, indent=2) + "\n")


def _is_done(row: Row, epoch: int, step: int) -> bool:
    return (row["epoch"] - 1, row.get("step", math.inf)) <= (epoch, step)


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"event", "seconds", "epoch"} <= row.keys() else None


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"
