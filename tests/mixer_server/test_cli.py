import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from framing import whole
from grpc_health.v1 import health_pb2
from serving import WAIT_S, ask, connect, health_of, random_call, sample, serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.cli import main
from mixer_server.config import ServerConfig
from mixer_server.hosting.registry import Registry, open_registry
from samix.errors import ConfigError
from samix.mixing.artefact import save_artefact
from samix.wire import encode_request

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixers") / "tiny.safetensors"
    save_artefact(path, tiny_mixer(), {})
    return path


@contextmanager
def program(*flags: str) -> Iterator[tuple[subprocess.Popen, dict[str, str]]]:
    """Run `python -m mixer_server` until the end of the block; with it the fields of its ready line."""
    command = [sys.executable, "-m", "mixer_server", *flags]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line[:1] == ["ready"], process.communicate()
            yield process, dict(field.split("=", 1) for field in line[1:])
        finally:
            process.kill()


@pytest.mark.slow
def test_drains_under_load(artefact: Path, tmp_path: Path):
    """On SIGTERM a busy server answers all it has accepted, refuses the rest politely and exits with 0."""
    path = tmp_path / "mixer.sock"
    with (
        program("--mixers", str(artefact), *FREE_PORTS, "--unix-socket", str(path)) as (process, addresses),
        grpc.insecure_channel(addresses["grpc"]) as channel,
        connect(f"unix:{path}") as stub,
    ):
        watch = health_of(channel).Watch(health_pb2.HealthCheckRequest(service="model/tiny"))
        next(watch)
        ask(stub, random_call())

        message = whole(encode_request(random_call(64)))
        mixes = [stub.Mix.future(message, timeout=WAIT_S) for _ in range(32)]
        mixes[4].result()
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        codes = [mix.code() for mix in mixes]
        _, errors = process.communicate(timeout=WAIT_S)

    assert process.returncode == 0, errors
    assert codes.count(grpc.StatusCode.OK) >= 5
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert "drained=True" in errors
    assert "Traceback" not in errors
    assert not path.exists()


@pytest.mark.slow
def test_second_signal_exits_at_once(artefact: Path):
    """A second signal does not wait for what the first one waits for; the status is 128 + its number."""
    with (
        program("--mixers", str(artefact), *FREE_PORTS, "--exit-timeout-s", "300") as (process, addresses),
        grpc.insecure_channel(addresses["grpc"]) as channel,
        connect(addresses["grpc"]) as stub,
    ):
        watch = health_of(channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        message = whole(encode_request(random_call(64, side=64)))
        mixes = [stub.Mix.future(message) for _ in range(16)]
        mixes[0].result()
        process.send_signal(signal.SIGTERM)
        assert next(watch).status == NOT_SERVING

        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WAIT_S)

    assert process.returncode == 128 + signal.SIGINT
    assert errors.endswith("second SIGINT: exiting without waiting\n")
    assert "Traceback" not in errors


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    status = main([*FREE_PORTS, *flags])
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    return output.err.splitlines()[-1]


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_port_in_use(artefact: Path, capsys: pytest.CaptureFixture[str], flag: str):
    """A port that is taken is one sentence and exit 2, also if a server like this one has it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        sentence = refusal(capsys, "--mixers", str(artefact), flag, str(port))

    assert sentence.startswith(f"error: cannot listen on 127.0.0.1:{port} (Address already in use): ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--mixers", "missing.safetensors"], "there is no mixer at missing.safetensors"),
        (["--mixers", __file__], "is not a whole safetensors file"),
        (["--mixers", "."], "there is no mixer (*.safetensors) in folder ."),
        (["--mixers"], "name at least one mixer: --mixers FILE_OR_FOLDER..."),
        (["--mixers", "x", "--memory-mib", "-5"], "memory-mib must be >= 0, got -5"),
        (["--mixers", "x", "--grpc-port", "70000"], "grpc-port must lie in 0..65535, got 70000"),
        (["--mixers", "x", "--requests.max-images", "9999"], "(9999) must not exceed batching.max-queue-images (4096)"),
        (["--mixers", "x", "--requests.max-in-flight", "0"], "requests.max-in-flight must be positive, got 0"),
        (
            ["--mixers", "x", "--requests.max-message-mib", "100000"],
            "must be at most 2047, all that gRPC can read, got",
        ),
        (["--mixers", "x", "--requests.max-wait-s", "inf"], "requests.max-wait-s must be positive and at most 86400"),
        (["--mixers", "x", "--requests.max-wait-s", "nan"], "at most 86400 (a day), got nan"),
        (["--mixers", "x", "--requests.max-upload-s", "0"], "requests.max-upload-s must be positive and at most 86400"),
        (["--mixers", "x", "--exit-timeout-s", "inf"], "exit-timeout-s must be positive and at most 86400"),
        (["--mixers", "x", "--exit-timeout-s", "1e12"], "at most 86400 (a day), got 1000000000000.0"),
        (["--mixers", "x", "--num-threads", "-1"], "num-threads must be >= 0, got -1; 0 takes one for each core"),
    ],
)
def test_refuses_flags(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    flags: list[str],
    sentence: str,
):
    """What cannot be served is one sentence with the value and exit 2."""
    monkeypatch.chdir(tmp_path)

    assert sentence in refusal(capsys, *flags)


def test_two_mixers_of_one_name(artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Two files that hold mixers of one name are refused with both paths."""
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(artefact.read_bytes())

    sentence = refusal(capsys, "--mixers", str(artefact), str(tmp_path))

    assert f"{copy} and {artefact} both hold a mixer called 'tiny'" in sentence


def test_damaged_mixer(artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file whose weights were changed is refused by its checksum."""
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(artefact.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)

    assert "have checksum" in refusal(capsys, "--mixers", str(damaged))


def test_unix_socket_of_a_living_server(artefact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The socket of a living server, or another file, is not taken over."""
    path = tmp_path / "mixer.sock"
    plain = tmp_path / "notes.txt"
    plain.write_text("keep me")
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()

        sentence = refusal(capsys, "--mixers", str(artefact), "--unix-socket", str(path))

    assert "another server listens there" in sentence
    assert "a file of that name is there" in refusal(capsys, "--mixers", str(artefact), "--unix-socket", str(plain))
    assert plain.read_text() == "keep me"


def test_socket_of_another_kind(tmp_path: Path):
    """A socket that is none of gRPC's, such as that of leases, is refused in one sentence."""
    path = tmp_path / "mixer.sock.memory"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(path))
        other.listen()

        with pytest.raises(ConfigError, match="what is there is not ours"), serve(tiny_mixer(), unix_socket=path):
            pass


def test_failed_start_leaves_nothing_open(tmp_path: Path):
    """A server that cannot listen everywhere listens nowhere."""
    admin, unix = tmp_path / "admin.sock", tmp_path / "mixer.sock"
    admin.write_text("in the way")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = ServerConfig(mixers=(), grpc_port=port, http_port=0, metrics_port=0, unix_socket=unix, admin_socket=admin)
    server = MixerServer(config, Registry([tiny_mixer()]), on_drain=lambda: None)

    with pytest.raises(ConfigError, match="a file of that name is there"):
        server.start()

    assert not unix.exists()
    socket.create_server(("127.0.0.1", port)).close()


def test_unix_socket_of_a_dead_server(tmp_path: Path):
    """A socket left behind by a dead server is replaced by one that only this user may open, and removed on exit."""
    path = tmp_path / "mixer.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with serve(tiny_mixer(), unix_socket=path) as server, connect(f"unix:{path}") as stub:
        mode = stat.S_IMODE(path.stat().st_mode)
        first = ask(stub, random_call())
        with connect(server.addresses["grpc"]) as other:
            second = ask(other, random_call())

    assert mode == 0o600
    assert np.array_equal(first.mask_logits, second.mask_logits)
    assert not path.exists()


def test_load_duration_is_told(artefact: Path):
    """The metrics say how long reading each mixer's file took."""
    server = MixerServer(
        ServerConfig(mixers=(), grpc_port=0, http_port=0, metrics_port=0), open_registry([artefact], "cpu")
    )
    server.start()
    server.stop()

    assert sample(server, "mixer_model_load_duration_seconds", model="tiny") > 0


@pytest.mark.parametrize("excess", [0, 1])
def test_longest_unix_socket(excess: int):
    """A path as long as the platform allows is listened on, a longer one refused with the limit."""
    limit = 107 if sys.platform == "linux" else 103
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = Path(folder) / ("x" * (limit + excess - len(folder) - 1))
        if excess:
            with (
                pytest.raises(ConfigError, match=f"is longer than {limit} bytes"),
                serve(tiny_mixer(), unix_socket=path),
            ):
                pass
        else:
            with serve(tiny_mixer(), unix_socket=path), connect(f"unix:{path}") as stub:
                assert ask(stub, random_call()).mixer == "tiny"


def test_metrics_port_in_use(caplog: pytest.LogCaptureFixture):
    """A metrics port that is taken becomes a free one, with a warning."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = ServerConfig(mixers=(), grpc_port=0, http_port=0, metrics_port=port)
        server = MixerServer(config, Registry([tiny_mixer()]))
        server.start()
        server.stop()

    assert server.addresses["metrics"] != f"127.0.0.1:{port}"
    assert "metrics_port_taken" in caplog.messages
