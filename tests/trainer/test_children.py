"""A program's children: logged, bounded in time and never left behind."""

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from serving import WAIT_S
from training import processes_of, survivors

from trainer import children
from trainer.children import Child, ChildFailed, start_child

STUBBORN = """
    import signal, subprocess, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", __file__], start_new_session=True)
    print("ready", flush=True)
    signal.pause()
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start a script as a child module."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def run(script: str) -> AbstractContextManager[Child]:
        lines = script.splitlines()
        (tmp_path / "child_script.py").write_text("\n".join(line.removeprefix("    ") for line in lines))
        return start_child("child_script", [str(tmp_path)], tmp_path / "child.log")

    return run


def test_success_passes_on_its_lines(start):
    """A child that succeeds hands on every line of its output and error output, in order."""
    lines: list[str] = []

    with start("import sys; print('one'); print('two', file=sys.stderr); print('three')") as child:
        child.wait(WAIT_S, lines.append)

    assert lines == ["one", "two", "three"]


def test_a_users_own_modules_are_left_alone(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A services.py in the folder where the program was started is not taken for ours."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/services.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path / "elsewhere")

    with start("import services.shards") as child:
        child.wait(WAIT_S, lambda _: None)


def test_failure_shows_the_end_of_its_log(start, tmp_path: Path):
    """A child that fails is reported with its status, the last lines of its log and where the rest is."""
    script = "import sys\nfor i in range(40): print('line', i)\nsys.exit(3)"

    with start(script) as child, pytest.raises(ChildFailed) as failure:
        child.wait(WAIT_S, lambda _line: None)

    message = str(failure.value)
    assert message.startswith("`child` ended with status 3")
    assert "line 39" in message
    assert "line 27" not in message
    assert str(tmp_path / "child.log") in message


def test_failure_shows_the_sentence_of_an_error(start):
    """Where a child's log holds `error:` sentences, those are shown instead of what torchrun draws below them."""
    script = "import sys\nfor i in range(2): print('error: no shard matches x')\nprint('====\\n' * 30)\nsys.exit(1)"

    with start(script) as child, pytest.raises(ChildFailed) as failure:
        child.wait(WAIT_S, lambda _line: None)

    assert str(failure.value).count("error: no shard matches x") == 1
    assert "====" not in str(failure.value)


def test_timeout(start):
    """A child that takes too long is reported, and gone when the block ends."""
    with start("import signal; print('hello', flush=True); signal.pause()") as child:
        child.wait_for_line("hello", WAIT_S)
        with pytest.raises(ChildFailed, match=r"took longer than 0 s.*"):
            child.wait(0.1, lambda _line: None)

    assert child.stop() == -signal.SIGTERM


def test_waits_for_a_line(start):
    """The line that was waited for is returned whole, while the child goes on."""
    with start("import signal; print('warming'); print('ready a=1', flush=True); signal.pause()") as child:
        assert child.wait_for_line("ready ", WAIT_S) == "ready a=1"


def test_ends_without_the_line(start):
    """A child that ends before saying what was waited for is reported."""
    with start("print('no')") as child, pytest.raises(ChildFailed, match="ended without saying 'ready '"):
        child.wait_for_line("ready ", WAIT_S)


def test_notices_that_a_child_ended(start):
    """A child counts as running until it ends; how it ended is then told like any failure."""
    with start("import threading; print('up'); threading.Event().wait(60)") as child:
        child.wait_for_line("up", WAIT_S)

        child.check_running()
        child.stop()

        with pytest.raises(ChildFailed, match="`child` ended with status -15"):
            child.check_running()


def test_stops_a_stubborn_child_with_its_children(start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A child that ignores SIGTERM is killed after a while, with its own children in whatever session they are."""
    monkeypatch.setattr(children, "_STOP_GRACE_S", 0.2)

    with start(STUBBORN) as child:
        child.wait_for_line("ready", WAIT_S)
        running = processes_of(str(tmp_path))

    assert len(running) == 2
    assert child.stop() == -signal.SIGKILL
    assert survivors(str(tmp_path)) == {}


def test_a_second_interrupt_kills_at_once(start, tmp_path: Path):
    """Ctrl-C while a child is being stopped kills it and its children instead of leaving them."""

    def stop_and_interrupt() -> None:
        with start(STUBBORN) as child:
            child.wait_for_line("ready", WAIT_S)
            signal.setitimer(signal.ITIMER_REAL, 0.3)

    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stop_and_interrupt()
    finally:
        signal.signal(signal.SIGALRM, previous)

    assert survivors(str(tmp_path)) == {}


def test_is_gone_when_the_block_fails(start, tmp_path: Path):
    """An error inside the block leaves no child behind."""

    def fail() -> None:
        with start("import signal; print('ready', flush=True); signal.pause()") as child:
            child.wait_for_line("ready", WAIT_S)
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        fail()

    assert survivors(str(tmp_path)) == {}
