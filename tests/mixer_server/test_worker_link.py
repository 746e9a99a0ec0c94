import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from serving import WAIT_S

from mixer_server.workers.worker_link import ParentLink, Report, decode_report
from services.signals import StopRequest

DRAIN_FOR_EVER = """
import sys, threading
from mixer_server.workers.worker_link import ParentLink
from services.signals import stop_on_signals
with stop_on_signals() as stop:
    ParentLink(int(sys.argv[1]), stop).watch(float(sys.argv[2]))
    print("watching", flush=True)
    print("stopping", stop.wait(), flush=True)
    threading.Event().wait()
"""


@contextmanager
def child(exit_timeout_s: float) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Run a worker that never ends by itself; with it our end of its line."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, "-c", DRAIN_FOR_EVER, str(descriptor), str(exit_timeout_s)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[descriptor])
        with process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "watching\n"
                yield process, ours
            finally:
                process.kill()


@pytest.fixture
def pair() -> Iterator[tuple[ParentLink, socket.socket, StopRequest]]:
    ours, theirs = socket.socketpair()
    stop = StopRequest()
    with ours:
        link = ParentLink(theirs.detach(), stop)
        yield link, ours, stop
        link._socket.close()


def test_a_report_goes_up(pair: tuple[ParentLink, socket.socket, StopRequest]):
    """What a worker says reaches its parent."""
    link, ours, _ = pair
    report = Report(addresses={"grpc": "127.0.0.1:1"}, mixers=["tiny@1"])

    link.send(report)

    assert decode_report(ours.recv(1000)) == report


def test_a_report_to_nobody(pair: tuple[ParentLink, socket.socket, StopRequest]):
    """A parent that is gone is no reason for a worker to fail before it has stopped in order."""
    link, ours, _ = pair
    ours.close()

    link.send(Report(addresses={}, mixers=[]))


def test_stops_when_the_parent_is_gone():
    """The end of the parent asks a worker to stop, and ends it when that takes too long."""
    with child(exit_timeout_s=0.2) as (process, ours):
        ours.close()
        output, _ = process.communicate(timeout=WAIT_S)

    assert output == f"stopping {signal.SIGTERM.value}\n"
    assert process.returncode == 1


def test_ends_when_the_parent_does_not_wait():
    """A parent that asked to stop, and is gone before that is done, wants no more waiting."""
    with child(exit_timeout_s=1000.0) as (process, ours):
        assert process.stdout is not None
        process.terminate()
        assert process.stdout.readline() == f"stopping {signal.SIGTERM.value}\n"

        ours.close()

        assert process.wait(WAIT_S) == 1
