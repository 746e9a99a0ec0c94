"""Calls that are made later, on one thread."""

import logging
import os
import pickle
import threading
from collections.abc import Iterator

import pytest

from samix.client.timers import Timers
from samix.errors import InputError, MixerCancelled

WAIT_S = 20.0
FAR_S = 60.0


@pytest.fixture
def timers() -> Iterator[Timers]:
    timers = Timers()
    yield timers
    timers.close()


def wait_for_all_before(timers: Timers, delay_s: float = 0.0) -> None:
    """Wait until everything was called back that was due by now, or will be within the delay."""
    reached = threading.Event()
    timers.after(delay_s, reached.set)
    assert reached.wait(WAIT_S)


def threads_of_timers() -> int:
    return sum(thread.name == "mixer-timers" for thread in threading.enumerate())


def test_calls_come_in_the_order_of_their_times(timers: Timers) -> None:
    """Whatever the order they were asked for, calls are made by their times, on one thread that is not the caller's."""
    called: list[float] = []
    threads: set[str] = set()

    def note(delay_s: float) -> None:
        called.append(delay_s)
        threads.add(threading.current_thread().name)

    for delay_s in (0.03, 0.01, 0.02):
        timers.after(delay_s, lambda delay_s=delay_s: note(delay_s))
    wait_for_all_before(timers, 0.04)

    assert called == [0.01, 0.02, 0.03]
    assert threads == {"mixer-timers"}


def test_an_earlier_call_does_not_wait_for_a_later_one(timers: Timers) -> None:
    """A call that is asked for while the thread waits for a later one is made in time."""
    timers.after(FAR_S, lambda: None)
    wait_for_all_before(timers)

    wait_for_all_before(timers, 0.01)


def test_a_cancelled_call_is_not_made(timers: Timers) -> None:
    """Neither is a cancelled call made, nor is cancelling it twice, or too late, an error."""
    called: list[str] = []
    timer = timers.after(0.01, lambda: called.append("cancelled"))
    late = timers.after(0.0, lambda: called.append("late"))

    timer.cancel()
    timer.cancel()
    wait_for_all_before(timers, 0.02)
    late.cancel()

    assert called == ["late"]


def test_cancelled_calls_do_not_pile_up(timers: Timers) -> None:
    """Of many calls that are cancelled long before their time few are kept, and those that are not cancelled all."""
    lasting = [timers.after(FAR_S, lambda: None) for _ in range(100)]

    for _ in range(10_000):
        timers.after(FAR_S, lambda: None).cancel()

    assert all(timer in timers._heap for timer in lasting)
    assert len(timers._heap) < 400


def test_a_call_that_raises_stops_no_other(timers: Timers, caplog: pytest.LogCaptureFixture) -> None:
    """What a call raises is logged, and the calls after it are made."""

    def fail() -> None:
        raise OverflowError

    with caplog.at_level(logging.ERROR, "samix"):
        timers.after(0.0, fail)
        wait_for_all_before(timers)

    assert caplog.messages == ["timer_failed"]


def test_no_thread_before_the_first_call() -> None:
    """Timers that nobody uses have no thread, and those that are closed have none any more."""
    before = threads_of_timers()
    timers = Timers()
    unused = threads_of_timers()
    timers.after(FAR_S, lambda: None)
    used = threads_of_timers()

    timers.close()

    assert (unused, used, threads_of_timers()) == (before, before + 1, before)


@pytest.mark.parametrize("call_back", [False, True])
def test_closing(call_back: bool) -> None:
    """Closing drops what waits, or has it called back at once; it may be done twice, and nothing is taken later."""
    timers = Timers()
    called: list[str] = []
    timers.after(FAR_S, lambda: called.append("waiting"))

    timers.close(call_back=call_back)
    timers.close(call_back=call_back)

    assert called == ["waiting"] * call_back
    with pytest.raises(MixerCancelled, match="closed; connect again"):
        timers.after(0.0, lambda: None)


def test_closing_from_a_call() -> None:
    """A call may close the timers that make it, and one that finds them closed is no failure."""
    timers = Timers()
    done = threading.Event()

    def close() -> None:
        timers.close()
        done.set()

    timers.after(0.0, close)

    assert done.wait(WAIT_S)


def test_a_closed_client_is_no_failure_of_a_call(timers: Timers, caplog: pytest.LogCaptureFixture) -> None:
    """A call that meets something closed meanwhile is not logged."""

    def meet() -> None:
        raise MixerCancelled("closed meanwhile")

    with caplog.at_level(logging.DEBUG, "samix"):
        timers.after(0.0, meet)
        wait_for_all_before(timers)

    assert caplog.messages == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_is_refused(timers: Timers) -> None:
    """A fork has no timers' thread: it is told so, and may close them."""
    timers.after(FAR_S, lambda: None)
    read_end, write_end = os.pipe()

    if (child := os.fork()) == 0:
        try:
            timers.after(0.0, lambda: None)
        except InputError as error:
            os.write(write_end, str(error).encode())
        timers.close()
        os._exit(0)

    os.close(write_end)
    with os.fdopen(read_end) as told:
        assert "forked; connect in the worker" in told.read()
    assert os.waitpid(child, 0)[1] == 0


def test_pickled(timers: Timers) -> None:
    """A copy for another process starts afresh."""
    timers.after(FAR_S, lambda: None)

    copy = pickle.loads(pickle.dumps(timers))

    assert copy._heap == []
