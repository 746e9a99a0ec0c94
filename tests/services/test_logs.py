import json
import logging

import pytest
from grpc import _common  # pyright: ignore[reportAttributeAccessIssue]

from samix.mixer.v1 import mixer_pb2 as pb
from services.logs import JsonFormatter, TextFormatter, setup_logging


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
