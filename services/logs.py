"""Log lines of all programs: one event per line with its fields, as text for people or as JSON for machines.

`log.info("shard_written", extra={"shard": name, "samples": 1000})` becomes
`2025-01-31T12:00:00.000Z INFO services.shards shard_written shard=digits-train-000000.tar samples=1000`.
A field may not be called like one of LogRecord's own attributes (`name`, `args`, `module`, ...): logging refuses it.
What repeats is counted instead of written, see log_repeats. Lines of a rank say which one, and lines about a request
its key, see log_context.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Literal

from services.log_context import label_request
from services.log_repeats import Repeats

LogFormat = Literal["text", "json"]

_OWN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def setup_logging(
    log_format: LogFormat = "text",
    *,
    level: int = logging.INFO,
    environ: Mapping[str, str] = os.environ,
    rank: int | None = None,
) -> None:
    """Send the logs of this process to stderr; to be called once, by a program's main.

    Args:
        log_format: lines for people or for machines.
        level: the lowest that is written.
        environ: where torchrun's RANK is looked up, which each line then has as a field.
        rank: that of a program which has one also when torchrun did not start it.
    """
    handler = LineHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_shortened)
    handler.addFilter(label_request)
    rank = int(environ["RANK"]) if environ.get("RANK", "").isdigit() else rank
    if rank is not None:
        handler.addFilter(_label("rank", rank))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


class LineHandler(logging.StreamHandler):
    """Writes lines to stderr, except for repeats, whose numbers it writes at its end at the latest.

    Args:
        make_repeats: starts to count; each process counts for itself.
    """

    def __init__(self, make_repeats: Callable[[], Repeats] = Repeats) -> None:
        super().__init__(sys.stderr)
        self._make_repeats = make_repeats
        self._repeats = make_repeats()
        self._process_id = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it."""
        for admitted in self._own_repeats().admit(record):
            super().emit(admitted)

    def close(self) -> None:
        """Write what was counted; logging does this at the end of the process."""
        with self.lock or nullcontext():
            for count in self._own_repeats().drain():
                if not self.stream.closed:
                    super().emit(count)
        super().close()

    def _own_repeats(self) -> Repeats:
        if self._process_id != os.getpid():  # a fork, whose parent will tell what it has counted
            self._repeats, self._process_id = self._make_repeats(), os.getpid()
        return self._repeats


class TextFormatter(logging.Formatter):
    """`time level logger event key=value ...`; values with spaces are quoted, so that a line can be split again."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback follows on lines of its own."""
        fields = "".join(f" {key}={_quoted(value)}" for key, value in fields_of(record).items())
        line = f"{_time(record)} {record.levelname} {record.name} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        line = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "event": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _shortened(record: logging.LogRecord) -> bool:
    # A message of a peer that cannot be read is no bug of ours; its call ends with a status that says so, too.
    if record.name == "grpc._common":
        record.exc_info = None
    return True


def _label(name: str, value: object) -> Callable[[logging.LogRecord], bool]:
    def label(record: logging.LogRecord) -> bool:
        vars(record).setdefault(name, value)  # a line about another rank says so itself
        return True

    return label


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Say what a record was given beside its event."""
    return {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    is_plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if is_plain else json.dumps(text, ensure_ascii=not text.isprintable())
