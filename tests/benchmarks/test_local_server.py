"""`make serve-local` and `make stop-local`: a mixer server in the background, in a copy of the project."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training import processes_of

ROOT = Path(__file__).parents[2]
FREE_PORTS = [part for name in ("grpc", "http", "metrics") for part in (f"--{name}-port", "0")]
SCRIPT_S = 90.0
"""The script itself waits a minute for a server that starts."""

pytestmark = pytest.mark.slow


class Project:
    """A folder in which the script finds what it needs."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "deploy/local-server.sh"
        self.pid_file = folder / "runs/up/server.pid"

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([self.script, *args], capture_output=True, text=True, timeout=SCRIPT_S)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/local-server.sh").write_bytes((ROOT / "deploy/local-server.sh").read_bytes())
    (tmp_path / "deploy/local-server.sh").chmod(0o755)
    (tmp_path / "mixers").symlink_to(ROOT / "mixers")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    project = Project(tmp_path)
    yield project
    project.run("down")


def test_up_twice_and_down(project: Project):
    """`up` waits until the server is ready; a second `up` says that it runs; `down` drains it."""
    first = project.run("up", *FREE_PORTS)
    pid = int(project.pid_file.read_text())
    second = project.run("up")
    down = project.run("down")

    assert first.stdout.startswith("ready grpc=127.0.0.1:")
    assert "make stop-local stops it" in first.stdout
    assert f"already runs (process {pid})" in second.stdout
    assert first.stdout.splitlines()[0] in second.stdout
    assert (down.returncode, down.stdout.splitlines()[-1]) == (0, "drained and stopped")
    assert pid not in processes_of("samix serve")


def test_failed_start(project: Project):
    """A server that cannot start is reported with the reason from its log, and leaves no pid file."""
    run = project.run("up", "--grpc-port", "70000")

    assert run.returncode == 1
    assert "grpc-port must lie in 0..65535, got 70000" in run.stderr
    assert not project.pid_file.exists()


def test_up_again(project: Project):
    """A server started after another one waits for its own ready line, not the one left in the log."""
    before = project.run("up", *FREE_PORTS).stdout.splitlines()[0]
    project.run("down")

    again = project.run("up", *FREE_PORTS)

    assert again.returncode == 0
    assert again.stdout.startswith("ready grpc=127.0.0.1:")
    assert again.stdout.splitlines()[0] != before


@pytest.mark.parametrize("content", ["999999999", str(os.getpid()), "", "nonsense"])
def test_stale_pid_file(project: Project, content: str):
    """A pid file whose process is gone, or is another program by now, is removed and harms nobody."""
    project.pid_file.parent.mkdir(parents=True)
    project.pid_file.write_text(content)

    down = project.run("down")

    assert (down.returncode, down.stdout) == (0, "no mixer server runs\n")
    assert "removed runs/up/server.pid" in down.stderr
    assert not project.pid_file.exists()


def test_down_without_up(project: Project):
    """Stopping what does not run is no error."""
    down = project.run("down")

    assert (down.returncode, down.stdout, down.stderr) == (0, "no mixer server runs\n", "")


def test_unknown_word(project: Project):
    """Anything but up and down is answered with the usage."""
    run = project.run("sideways")

    assert run.returncode == 2
    assert run.stderr.startswith("usage: ")
