"""Lines say which request they are about."""

import json
import logging
import threading

import pytest

from services.log_context import about_request, current_request
from services.logs import setup_logging

log = logging.getLogger("room")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_lines_inside_have_the_key(capsys: pytest.CaptureFixture[str]):
    """Lines of the block have the request's key, lines before and after it none, in JSON as in text."""
    setup_logging("json", environ={})

    log.info("before")
    with about_request("5f2c9a1e-42"):
        log.info("inside")
    log.info("after")

    assert [line.get("request") for line in lines(capsys)] == [None, "5f2c9a1e-42", None]


def test_a_line_that_names_another_request_keeps_it(capsys: pytest.CaptureFixture[str]):
    """A thread that speaks for another request says its key."""
    setup_logging("text", environ={})

    with about_request("1"):
        log.info("pass_failed", extra={"request": "2"})

    assert capsys.readouterr().err.endswith("pass_failed request=2\n")


def test_blocks_nest_and_end_with_errors():
    """The outer request is current again after the inner block, whichever way that ends."""
    with about_request("outer"):
        with pytest.raises(ValueError, match="broken"), about_request("inner"):
            raise ValueError("broken")
        inside = current_request()

    assert (inside, current_request()) == ("outer", "")


def test_other_threads_are_about_nothing():
    """A request belongs to the thread that answers it."""
    seen: list[str] = []

    with about_request("mine"):
        other = threading.Thread(target=lambda: seen.append(current_request()))
        other.start()
        other.join()

    assert seen == [""]


def test_a_program_that_is_a_rank_says_so_without_torchrun(capsys: pytest.CaptureFixture[str]):
    """A training program's lines have a rank also when nobody set RANK; torchrun's word counts more."""
    setup_logging("json", environ={}, rank=0)
    log.info("step")
    setup_logging("json", environ={"RANK": "3"}, rank=0)
    log.info("step")

    assert [line["rank"] for line in lines(capsys)] == [0, 3]
