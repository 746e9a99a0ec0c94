"""A turn of one system: who is asked, what is measured, and that nobody is left behind."""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from training import survivors

from benchmarks.machine import choose_cores
from benchmarks.peer_servers.marked_processes import MARK, cpu_s, find_marked, kill_marked
from benchmarks.peer_systems import PORT, SCRIPTS, System, Variant
from benchmarks.peer_turns import Load, take_turn
from trainer.children import ChildFailed

ANSWERING = """
import http.server, sys

class Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "25088")
        self.end_headers()
        self.wfile.write(bytes(25088))

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""


@pytest.fixture
def orphan() -> Iterator[str]:
    """Start a process whose parent has ended; it carries the mark `orphaned`."""
    mark = f"orphaned-{os.getpid()}"
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass'])"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, MARK: mark}, check=True)
    yield mark
    kill_marked(mark)


def test_orphans_are_found_measured_and_ended(orphan: str):
    """A mark leads to processes whose parents have ended: to their processor time, and to their end."""
    found, deadline_s = find_marked(orphan), time.monotonic() + 60
    while not cpu_s(found):
        assert time.monotonic() < deadline_s

    kill_marked(orphan)

    assert len(found) == 1
    assert find_marked(orphan) == []


@pytest.fixture
def closed_loop(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the module as the scripts beside it do."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("closed_loop")


def test_all_callers_are_counted(closed_loop: ModuleType):
    """Batches of all callers count, each with its latency; those before the measurement do not."""
    answered = [0, 0]

    def caller(number: int) -> Callable[[], None]:
        def call() -> None:
            answered[number] += 1

        return call

    found = closed_loop.measure([caller(0), caller(1)], 0.05, [os.getpid()])

    assert found["concurrency"] == 2
    assert found["batches"] == len(found["latencies_s"]) == sum(answered) - 2 * 3
    assert found["elapsed_s"] >= 0.05


def test_what_a_caller_meets_is_raised(closed_loop: ModuleType):
    """A request that fails ends the measurement."""

    def fail() -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError, match="gone"):
        closed_loop.measure([fail, fail], 60.0, [])


def test_a_server_gets_time_to_start(closed_loop: ModuleType):
    """The first answers may be errors; after the time limit the last one is raised."""
    asked: list[str] = []

    def make_caller(address: str) -> Callable[[], None]:
        asked.append(address)
        if len(asked) == 1:
            raise ConnectionRefusedError("not yet")
        return lambda: None

    closed_loop.wait_ready(make_caller, "here:1", 60.0)
    asked.clear()
    with pytest.raises(ConnectionRefusedError, match="not yet"):
        closed_loop.wait_ready(make_caller, "here:1", 0.0)


def system(*server: str) -> System:
    return System(name="stub", requirements=None, server=server, client="litserve_client.py", variants=())


def load(seconds: float = 0.5) -> Load:
    return Load(concurrency=(1, 2), seconds=seconds, cores=choose_cores())


@pytest.mark.slow
def test_a_turn_starts_asks_and_ends(tmp_path: Path):
    """Server and client run with the variant's settings, are measured at each concurrency, and are gone."""
    variant = Variant(name="any", variables={"SAMIX_TEST_PORT": PORT})
    code = f"import os, sys; assert os.environ['SAMIX_TEST_PORT'] == sys.argv[1]\n{ANSWERING}"

    found = take_turn(system("-c", code, PORT, str(tmp_path)), variant, Path(sys.executable), load(), tmp_path / "log")

    assert [each["concurrency"] for each in found] == [1, 2]
    assert all(each["batches"] > 0 and each["server_cpu_s"] > 0 for each in found)
    assert survivors(str(tmp_path)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("code", ["raise SystemExit('no such port')", ANSWERING.replace("25088", "25086")])
def test_a_turn_that_fails_is_quoted(code: str, tmp_path: Path):
    """What server or client says before it ends reaches the person, and nobody is left."""
    words = r"no such port|cannot reshape"

    with pytest.raises(ChildFailed, match=words):
        take_turn(
            system("-c", code, PORT, str(tmp_path)),
            Variant(name="any"),
            Path(sys.executable),
            load(),
            tmp_path / "log",
            ready_s=1.0,
        )

    assert survivors(str(tmp_path)) == {}
