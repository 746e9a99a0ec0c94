"""Events that repeat: as many lines a minute as help, then their number."""

import gc
import logging
import sys
import weakref

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st

from services.log_repeats import MOST_NOTES, MOST_WARNINGS, WINDOW_S, Repeats


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def repeats(clock: Clock) -> Repeats:
    return Repeats(clock, max_events=3)


def line(event: str = "fetch_retried", level: int = logging.WARNING, name: str = "room", **fields: object):
    values = {"name": name, "levelno": level, "levelname": logging.getLevelName(level), "msg": event}
    return logging.makeLogRecord({**values, **fields})


def failed(error: type[Exception]):
    try:
        raise error("of this moment")
    except error:
        return line("pass_failed", logging.ERROR, exc_info=sys.exc_info())


def failed_elsewhere(error: type[Exception]):
    try:
        raise error("of this moment")
    except error:
        return line("pass_failed", logging.ERROR, exc_info=sys.exc_info())


def test_the_last_line_announces_the_silence(repeats: Repeats, clock: Clock):
    """Lines beyond the limit are held back, and the one before says for how long."""
    clock_steps = [repeats.admit(line()) for _ in range(MOST_WARNINGS - 1)]
    clock.now_s += 20

    last, held = repeats.admit(line()), repeats.admit(line())

    assert all(len(written) == 1 and not hasattr(written[0], "held_s") for written in clock_steps)
    assert vars(last[0])["held_s"] == WINDOW_S - 20
    assert held == []


def test_the_count_comes_with_the_first_line_after_the_minute(repeats: Repeats, clock: Clock):
    """After the window any line brings the count first, under the logger, level and event it is about."""
    for _ in range(MOST_WARNINGS + 7):
        repeats.admit(line(rank=2))
    clock.now_s += WINDOW_S

    count, other = repeats.admit(line("step", logging.INFO))

    assert (count.name, count.levelname, count.getMessage()) == ("room", "WARNING", "fetch_retried")
    assert (vars(count)["repeated"], vars(count)["rank"]) == (7, 2)
    assert other.getMessage() == "step"


def test_a_new_minute_starts_anew(repeats: Repeats, clock: Clock):
    """In the next window as many lines are written again, and nothing is counted twice."""
    for _ in range(MOST_WARNINGS + 1):
        repeats.admit(line())
    clock.now_s += WINDOW_S

    written = [repeats.admit(line()) for _ in range(MOST_WARNINGS)]

    assert [len(lines) for lines in written] == [2, *[1] * (MOST_WARNINGS - 1)]
    assert repeats.drain() == []


@pytest.mark.parametrize(
    "other", [line("fetch_failed"), line(name="hall"), line(level=logging.ERROR), line("fetch retried after a while")]
)
def test_other_events_are_not_held_back(repeats: Repeats, other: logging.LogRecord):
    """The limit is that of one event of one logger at one level."""
    for _ in range(MOST_WARNINGS + 1):
        repeats.admit(line())

    assert repeats.admit(other) == [other]


def test_fields_in_the_message_make_no_other_event(repeats: Repeats):
    """`event key=value` in one text is the same event as with fields of its own."""
    for number in range(MOST_WARNINGS):
        repeats.admit(line("mixer_replica_down target=%s reason=%s", args=(f"host{number}:1", "gone")))

    assert repeats.admit(line("mixer_replica_down target=other:1 reason=dead")) == []


def test_an_error_at_another_place_is_written(repeats: Repeats):
    """An exception of another kind, or raised elsewhere, is never taken for a repeat."""
    for _ in range(MOST_WARNINGS + 1):
        repeats.admit(failed(KeyError))

    assert repeats.admit(failed(KeyError)) == []
    assert len(repeats.admit(failed_elsewhere(KeyError))) == 1
    assert len(repeats.admit(failed(ValueError))) == 1


def test_what_ends_a_program_is_always_written(repeats: Repeats):
    """CRITICAL lines are not counted."""
    written = [repeats.admit(line(level=logging.CRITICAL)) for _ in range(2 * MOST_WARNINGS)]

    assert all(len(lines) == 1 for lines in written)


def test_progress_may_be_frequent(repeats: Repeats):
    """A program that says where it is ten times a second is not silenced."""
    written = [repeats.admit(line("step", logging.INFO)) for _ in range(MOST_NOTES + 1)]

    assert [len(lines) for lines in written] == [*[1] * MOST_NOTES, 0]


def test_memory_is_bounded_and_nothing_is_lost(repeats: Repeats):
    """Where too many events repeat at once the oldest is forgotten, and its count told first."""
    for _ in range(MOST_WARNINGS + 4):
        repeats.admit(line("first"))
    repeats.admit(line("second"))
    repeats.admit(line("third"))

    count, fourth = repeats.admit(line("fourth"))

    assert (count.getMessage(), vars(count)["repeated"]) == ("first", 4)
    assert fourth.getMessage() == "fourth"


class Unwritable:
    """Cannot be turned into text."""

    def __str__(self) -> str:
        raise RuntimeError("its file is closed")


def test_no_frame_is_kept(repeats: Repeats):
    """An error that was written leaves nothing of its frames behind, where the pixels of a batch may be."""
    alive = weakref.WeakSet[Unwritable]()

    def fail() -> None:
        alive.add(pixels := Unwritable())
        try:
            raise ValueError(f"of {id(pixels)}")
        except ValueError:
            repeats.admit(line("pass_failed", logging.ERROR, exc_info=sys.exc_info()))

    fail()
    gc.collect()

    assert not alive


@pytest.mark.parametrize(
    ("message", "value"), [("%d shards", "three"), ("%c", 1 << 40), ("%s", Unwritable())], ids=["type", "range", "own"]
)
def test_a_line_that_cannot_be_formatted_passes(repeats: Repeats, message: str, value: object):
    """Wrong arguments of a logging call are left to the handler, which complains of them."""
    broken = line(message, args=(value,))

    assert repeats.admit(broken) == [broken]


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 40)), max_size=300))
def test_every_line_is_written_or_counted(arrivals: list[tuple[str, float]]):
    """Whatever comes when, lines written and numbers told add up to all lines."""
    clock = Clock()
    repeats = Repeats(clock, max_events=3)
    written: list[logging.LogRecord] = []

    for event, pause_s in arrivals:
        clock.now_s += pause_s if pause_s > 38 else 0
        written += repeats.admit(line(event))
    written += repeats.drain()

    assert sum(vars(record).get("repeated", 1) for record in written) == len(arrivals)
