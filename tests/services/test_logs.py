import io
import json
import logging
import subprocess
import sys

import pytest
from grpc import _common  # pyright: ignore[reportAttributeAccessIssue]

from samix.mixer.v1 import mixer_pb2 as pb
from services.log_repeats import MOST_WARNINGS
from services.logs import JsonFormatter, LineHandler, TextFormatter, setup_logging


@pytest.fixture
def record():
    made = logging.makeLogRecord({"name": "room", "levelname": "INFO", "msg": "shard_written", "created": 1738324800.5})
    made.shard, made.seconds, made.note = "a.tar", 0.123456789, 'two words "here"'
    return made


def test_text_line_holds_event_and_fields(record):
    """A text line is time, level, logger, event and key=value fields, quoted where a space would split them."""
    line = TextFormatter().format(record)

    assert line == (
        "2025-01-31T12:00:00.500Z INFO room shard_written "
        r'shard=a.tar seconds=0.123457 note="two words \"here\""'
    )


def test_text_line_holds_nothing_that_ends_it(record):
    """What a terminal or a reader of lines would take for more than a letter is escaped."""
    record.note = "one\u2028two\u0085three\x1b[2J\x9b4m\n"

    line = TextFormatter().format(record)

    assert line.endswith(r'note="one\u2028two\u0085three\u001b[2J\u009b4m\n"')


def test_json_line_holds_event_and_fields(record):
    """A JSON line holds the same as one object."""
    line = json.loads(JsonFormatter().format(record))

    assert line == {
        "time": "2025-01-31T12:00:00.500Z",
        "level": "INFO",
        "logger": "room",
        "event": "shard_written",
        "shard": "a.tar",
        "seconds": 0.123456789,
        "note": 'two words "here"',
    }


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_lines_go_to_stderr(log_format, capsys):
    """After setup, events of every logger reach stderr, tracebacks included."""
    before = logging.getLogger().handlers[:]
    try:
        setup_logging(log_format)
        try:
            raise ValueError("broken")
        except ValueError:
            logging.getLogger("room").exception("pass_failed", extra={"images": 3})
    finally:
        logging.captureWarnings(False)
        logging.getLogger().handlers[:] = before

    err = capsys.readouterr().err
    assert "pass_failed" in err
    assert "ValueError: broken" in err


def test_garbage_of_a_peer_is_one_line(capsys):
    """What gRPC says of a message that it could not read takes one line; a traceback would look like our bug."""
    setup_logging()

    response = _common.deserialize(b"\xff" * 9, pb.MixResponse.FromString)

    assert response is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "ERROR grpc._common" in line


@pytest.fixture
def log_with():
    """A logger whose lines go through `setup_logging` with some environment."""

    def make(environ):
        setup_logging("json", environ=environ)
        return logging.getLogger("room")

    return make


@pytest.mark.parametrize(("environ", "rank"), [({"RANK": "3"}, 3), ({}, None), ({"RANK": "three"}, None)])
def test_lines_of_a_rank_say_which(log_with, capsys, environ, rank):
    """Each line of a process that torchrun started has its rank, unless it is about another one."""
    log = log_with(environ)

    log.info("step")
    log.info("mixer_lost", extra={"rank": 7})

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("rank") for line in lines] == [rank, 7]


def test_repeats_are_counted_at_the_end(log_with, capsys):
    """What was held back is told when the handler is closed, as it is at the end of a process."""
    log = log_with({"RANK": "3"})

    for number in range(MOST_WARNINGS + 5):
        log.warning("fetch_retried", extra={"address": number})
    logging.getLogger().handlers[0].close()

    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("address") for line in lines] == [*range(MOST_WARNINGS), None]
    assert lines[-2]["held_s"] == pytest.approx(60, abs=5)
    assert (lines[-1]["event"], lines[-1]["repeated"], lines[-1]["rank"]) == ("fetch_retried", 5, 3)


def test_a_closed_stderr_is_no_trouble(log_with, capsys):
    """Counts that nobody can read any more are let go without a traceback."""
    log = log_with({})
    for _ in range(MOST_WARNINGS + 1):
        log.warning("fetch_retried")
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, LineHandler)
    handler.setStream(closed := io.StringIO())
    closed.close()

    handler.close()

    assert "repeated" not in capsys.readouterr().err


FORK = """
import logging, os
from services.logs import setup_logging
setup_logging(environ={})
log = logging.getLogger("room")
for _ in range(25):
    log.warning("fetch_retried", extra={"by": "parent"})
if not (child := os.fork()):
    log.warning("fetch_retried", extra={"by": "child"})
    logging.shutdown()
    os._exit(0)
os.waitpid(child, 0)
"""


def test_a_fork_counts_for_itself():
    """A process that forked neither inherits the silence of its parent nor tells its count a second time."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=True)

    assert done.stderr.count("by=parent") == MOST_WARNINGS
    assert done.stderr.count("by=child") == 1
    assert done.stderr.count("repeated=5") == done.stderr.count("repeated=") == 1
