"""Log lines of all programs: one event per line with its fields, as text for people or as JSON for machines.

`log.info("shard_written", extra={"shard": name, "samples": 1000})` becomes
`2025-01-31T12:00:00.000Z INFO services.shards shard_written shard=digits-train-000000.tar samples=1000`.
A field may not be called like one of LogRecord's own attributes (`name`, `args`, `module`, ...): logging refuses it.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

_OWN_ATTRIBUTES = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def setup_logging(log_format: LogFormat = "text", *, level: int = logging.INFO) -> None:
    """Send the logs of this process to stderr; to be called once, by a program's main."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_shortened)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(True)


class TextFormatter(logging.Formatter):
    """`time level logger event key=value ...`; values with spaces are quoted, so that a line can be split again."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; a traceback follows on lines of its own."""
        fields = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
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
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def _shortened(record: logging.LogRecord) -> bool:
    # A message of a peer that cannot be read is no bug of ours; its call ends with a status that says so, too.
    if record.name == "grpc._common":
        record.exc_info = None
    return True


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _quoted(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    is_plain = text and text.isprintable() and not set(text) & set(' "=')
    return text if is_plain else json.dumps(text, ensure_ascii=False)
