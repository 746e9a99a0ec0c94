"""`samix health`: what a container asks its server every few seconds."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from samix.health import main
from samix.targets import is_target

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def serving(*handlers: health.HealthServicer, address: str = "127.0.0.1:0") -> Iterator[str]:
    """A gRPC server with these health services, or with none at all."""
    server = grpc.server(ThreadPoolExecutor(2))
    for handler in handlers:
        health_pb2_grpc.add_HealthServicer_to_server(handler, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}" if port > 1 else address
    finally:
        server.stop(None).wait()


@pytest.fixture
def servicer() -> health.HealthServicer:
    """Grpc's own, so that our two messages meet the true ones."""
    made = health.HealthServicer()
    made.set("", SERVING)
    made.set("samix.mixer.v1.MixerService", NOT_SERVING)
    made.set("model/tiny", SERVING)
    return made


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        ([], 0, "the server is serving"),
        (["--mixer", "tiny"], 0, "mixer tiny is serving"),
        (["--service", "samix.mixer.v1.MixerService"], 1, "is not serving (NOT_SERVING)"),
        (["--mixer", "nosuch"], 1, "mixer nosuch is not known there"),
    ],
)
def test_says_in_one_line_whether_it_serves(servicer, capsys, flags, status, said):
    """The status of the server, a service or a mixer is one line, and the exit status."""
    with serving(servicer) as address:
        ended = main([address, *flags])

    (line,) = capsys.readouterr().out.splitlines()
    assert ended == status
    assert line.startswith(f"{address}: ")
    assert said in line


def test_asks_a_unix_socket(servicer, tmp_path: Path, capsys):
    """A server on a unix socket is asked like any other."""
    with serving(servicer, address=f"unix://{tmp_path}/health.sock") as address:
        ended = main([address])

    assert ended == 0
    assert "the server is serving" in capsys.readouterr().out


def test_a_dead_server_is_not_serving(servicer, capsys):
    """Where nobody listens the answer comes at once, in one line, with status 1."""
    with serving(servicer) as address:
        pass

    ended = main([address])

    (line,) = capsys.readouterr().out.splitlines()
    assert ended == 1
    assert "cannot be reached; is the server started" in line


def test_a_server_without_health_is_named(capsys):
    """A gRPC server that knows no health checks is told from one that is down."""
    with serving() as address:
        ended = main([address])

    assert ended == 1
    assert "none that answers health checks" in capsys.readouterr().out


def test_waits_until_it_serves(servicer, capsys):
    """With --wait a server that warms up meanwhile counts as serving."""
    servicer.set("", NOT_SERVING)
    warm_up = threading.Timer(0.3, servicer.set, ("", SERVING))

    with serving(servicer) as address:
        warm_up.start()
        ended = main([address, "--wait", "20"])
        warm_up.join()

    assert ended == 0
    assert "the server is serving" in capsys.readouterr().out


def test_waits_no_longer_than_told(servicer, capsys):
    """A server that never serves ends the wait with its last word."""
    servicer.set("", NOT_SERVING)

    with serving(servicer) as address:
        ended = main([address, "--wait", "0.3"])

    assert ended == 1
    assert "NOT_SERVING" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["localhost"],
        ["localhost:0"],
        ["localhost:8001,other:8001"],
        ["localhost:8001", "--wait", "-1"],
        ["localhost:8001", "--wait", "soon"],
        ["localhost:8001", "--wait", "inf"],
        ["localhost:8001", "--mixer", "a", "--service", "b"],
        ["localhost:8001", "--mixer", "\udcff"],
    ],
)
def test_wrong_use_ends_with_2(argv, capsys):
    """What cannot be asked is refused before anything is sent."""
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("target", ["a:1", "dns:///a.b:65535", "[::1]:8001", "unix:///run/a.sock", "10.0.0.1:8001"])
def test_addresses_of_one_server(target):
    """Every form that clients connect to can be asked."""
    assert is_target(target)


def test_starts_without_torch():
    """The check imports neither torch nor numpy, so that it costs a tenth of a second of processor time."""
    code = (
        "import sys, samix.cli; status = samix.cli.main(['health', '127.0.0.1:1']);"
        "sys.exit(10 * status + bool({'torch', 'numpy', 'tyro'} & sys.modules.keys()))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)

    assert done.returncode == 10, done.stderr.decode()
