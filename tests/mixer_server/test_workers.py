import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from framing import whole
from prometheus_client.parser import text_string_to_metric_families
from serving import WAIT_S, ask, connect, random_call, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.cli import main
from mixer_server.config import ServerConfig
from mixer_server.engine.decoding import Decoder
from mixer_server.engine.passes import DeviceLost, Finished, MixerPasses
from mixer_server.hosting.registry import Registry
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from mixer_server.workers.worker import share_of
from mixer_server.workers.workers import gpu_variables
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall, encode_request
from services.addresses import reserve_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes share a port on Linux only")

FREE_PORTS = ["--grpc-port", "0", "--http-port", "0", "--metrics-port", "0"]
START_S = 60.0


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixers") / "tiny.safetensors"
    save_artefact(path, tiny_mixer(), {})
    return path


class Program:
    """`python -m mixer_server --workers 2`, with the fields of its ready line."""

    def __init__(self, process: subprocess.Popen[str], fields: dict[str, str]) -> None:
        self.process = process
        self.fields = fields

    def page(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.fields["http"], timeout=WAIT_S)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def picture(self, key: str) -> bytes:
        """Fetch a picture of the gallery."""
        with urllib.request.urlopen(f"http://{self.fields['http']}/gallery/{key}.jpg", timeout=WAIT_S) as response:
            return response.read()

    def counts(self, name: str) -> dict[str, float]:
        """Add up the samples of a name for each worker."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.page("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and "worker" in sample.labels:
                    worker = sample.labels["worker"]
                    found[worker] = found.get(worker, 0) + sample.value
        return found

    def ask(self) -> grpc.StatusCode:
        """Ask once over a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        message = whole(encode_request(random_call(1)))
        with grpc.insecure_channel(self.fields["grpc"], options=options) as channel:
            return MixerServiceStub(channel).Mix.future(message, timeout=WAIT_S).code()

    def ask_until_all_answered(self) -> set[grpc.StatusCode]:
        """Ask until each worker has answered; answers how the calls ended."""
        codes = set()
        wait_until(lambda: codes.add(self.ask()) or self._have_all_answered())
        return codes

    def _have_all_answered(self) -> bool:
        counts = self.counts("mixer_batches_total")
        return len(counts) == 2 and min(counts.values()) > 0

    @property
    def worker_ids(self) -> list[int]:
        process = self.process.pid
        return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@contextmanager
def program(*flags: str, ports: list[str] = FREE_PORTS) -> Iterator[Program]:
    command = [sys.executable, "-m", "mixer_server", "--workers", "2", *ports, *flags]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().split()
            assert line[:1] == ["ready"], process.communicate()
            yield Program(process, dict(field.split("=", 1) for field in line[1:]))
        finally:
            process.kill()


def wait_until(is_so: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + START_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come to that"


@contextmanager
def stopped(process_id: int) -> Iterator[None]:
    """Let a process do nothing until the end of the block."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


def has_ended(process_id: int) -> bool:
    return not Path(f"/proc/{process_id}").exists()


@pytest.mark.slow
def test_one_status_of_all_workers(artefact: Path):
    """The page of two workers adds up what both do, shows pictures of both, and names whose errors it lists."""
    with program("--mixers", str(artefact), "--gallery") as server:
        server.ask_until_all_answered()
        status = json.loads(server.page("/status.json")[1])
        answered = sum(server.counts("mixer_images_total").values())
        pictures = [server.picture(picture["key"]) for picture in status["pictures"]]
        missing = [server.page(f"/gallery/{key}.jpg")[0] for key in ("0", "7-0", "0-x", "0-999")]
        code, live = server.page("/status/live")

    assert status["state"] == "ready"
    assert sum(client["num_images"] for client in status["clients"]) == answered
    assert {picture["key"].partition("-")[0] for picture in status["pictures"]} == {"0", "1"}
    assert all(picture.startswith(b"\xff\xd8") for picture in pictures)
    assert missing == [404] * 4
    assert code == 200
    assert ">Workers</h2>" in live


def test_all_workers_answer_and_drain(artefact: Path, tmp_path: Path):
    """Two processes answer on one port and on a socket each, are seen on one page, and drain together on SIGTERM."""
    path = tmp_path / "mixer.sock"
    with program("--mixers", str(artefact), "--unix-socket", str(path)) as server:
        workers = server.worker_ids
        codes = server.ask_until_all_answered()
        sockets = server.fields["unix"].split(",")
        answers = []
        for socket_path in sockets:
            with connect(f"unix:{socket_path}") as stub:
                answers.append(ask(stub, random_call()).mixer)
        readiness, (_, status) = server.page("/readyz"), server.page("/")

        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=WAIT_S)

    assert server.process.returncode == 0, errors
    assert codes == {grpc.StatusCode.OK}
    assert len(workers) == 2
    assert all(has_ended(worker) for worker in workers)
    assert server.fields["workers"] == "2"
    assert sockets == [f"{path}.0", f"{path}.1"]
    assert answers == ["tiny", "tiny"]
    assert readiness == (200, "ok\n")
    assert all(f'>{worker}</td><td role="cell" data-label="State">ready<' in status for worker in workers)
    assert errors.count("drained=True worker=") == 2
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_worker_comes_back(artefact: Path):
    """When a worker is killed the other one goes on answering, and a new one takes its place."""
    with program("--mixers", str(artefact)) as server:
        before = server.worker_ids

        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: server.page("/readyz")[0] == 503)
        codes = [server.ask() for _ in range(20)]
        wait_until(lambda: server.page("/readyz")[0] == 200)

        after = server.worker_ids
        assert codes == [grpc.StatusCode.OK] * 20
        assert server.counts("mixer_worker_restarts_total") == {"0": 1, "1": 0}
        assert before[1] in after
        assert len({*before, *after}) == 3
        assert server.ask_until_all_answered() == {grpc.StatusCode.OK}


@pytest.mark.slow
def test_workers_end_with_their_parent(artefact: Path):
    """A parent that is killed leaves no worker behind."""
    with program("--mixers", str(artefact)) as server:
        workers = server.worker_ids

        server.process.kill()

        wait_until(lambda: all(has_ended(worker) for worker in workers))


@pytest.mark.slow
def test_a_second_signal_ends_all_at_once(artefact: Path):
    """The second signal waits neither for the workers nor for what they wait for."""
    with program("--mixers", str(artefact), "--exit-timeout-s", "300") as server:
        workers = server.worker_ids
        with stopped(workers[0]):
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: server.page("/readyz") == (503, "server is shutting down\n"))

            server.process.send_signal(signal.SIGINT)
            server.process.wait(WAIT_S)
        _, errors = server.process.communicate(timeout=WAIT_S)

    wait_until(lambda: all(has_ended(worker) for worker in workers))
    assert server.process.returncode == 128 + signal.SIGINT
    assert "second SIGINT: exiting without waiting\n" in errors


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    status = main([*FREE_PORTS, "--workers", "2", *flags])
    output = capsys.readouterr()
    assert (status, output.out) == (2, "")
    return output.err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--model-control", "poll"]])
def test_a_bad_mixer(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]):
    """What a worker refuses to start with is the sentence of the whole program, said once, with exit 2."""
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nonsense")
    missing = tmp_path / "missing"

    sentence = refusal(capsys, "--mixers", str(missing if flags else bad), *flags)

    assert sentence.startswith("error: ")
    assert ("missing" if flags else "is not a whole safetensors file") in sentence


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_taken_port(artefact: Path, capsys: pytest.CaptureFixture[str], flag: str):
    """A port that is taken is refused before any worker starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        sentence = refusal(capsys, "--mixers", str(artefact), flag, str(port))

    assert sentence.startswith(f"error: cannot listen on 127.0.0.1:{port} (Address already in use): ")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--workers", "0"], "workers must lie in 1..256, got 0"),
        (["--workers", "257"], "workers must lie in 1..256, got 257"),
        (["--admin-socket", "a"], "admin-socket a speaks to one process, workers is 2, and one that is started again"),
        (["--unix-socket", "u", "--shared-memory-mib", "1"], "is 1, of which 2 workers cannot have 1 each"),
    ],
)
def test_what_workers_cannot_have(capsys: pytest.CaptureFixture[str], flags: list[str], sentence: str):
    """What several processes cannot serve is one sentence with the value and exit 2."""
    assert sentence in refusal(capsys, "--mixers", "x", *flags)


class FrailPasses(MixerPasses):
    """Passes on a device that can be lost."""

    is_lost = False

    def launch(self, mixer: FrozenMixer, calls: Sequence[MixCall]) -> Finished:
        if self.is_lost:
            raise DeviceLost("the GPU fell off the bus")
        return super().launch(mixer, calls)


def test_a_worker_that_cannot_compute_asks_to_be_replaced():
    """A worker that lost its device is not ready any more and stops, since a new process may find it again."""
    has_asked = threading.Event()
    passes = FrailPasses(Decoder(1))
    with reserve_port("127.0.0.1", 0) as reserved:
        config = share_of(ServerConfig(mixers=(), workers=2), 0, reserved.getsockname()[1])
        server = MixerServer(config, Registry([tiny_mixer()]), passes, on_drain=has_asked.set, is_worker=True)
        server.start()
        passes.is_lost = True
        with connect(server.addresses["grpc"]) as stub:
            code = stub.Mix.future(whole(encode_request(random_call())), timeout=WAIT_S).code()

        asked = has_asked.wait(WAIT_S)
        server.stop()

    assert code == grpc.StatusCode.INTERNAL
    assert asked
    assert server.readiness.obstacle == SHUTTING_DOWN


def test_shares():
    """Workers share the port, memory, leases and cores; pages and unix socket are their own."""
    config = ServerConfig(
        mixers=(), workers=4, memory_mib=4096, unix_socket=Path("/run/mixer.sock"), shared_memory_mib=9, device="cuda"
    )

    share = share_of(config, 2, 8001)

    assert (share.workers, share.grpc_port, share.http_port, share.metrics_port) == (1, 8001, 0, 0)
    assert (share.memory_mib, share.shared_memory_mib) == (1024, 2)
    assert share.unix_socket == Path("/run/mixer.sock.2")
    assert share.num_threads >= 1
    assert share.device == "cuda"


def test_planned_memory_is_shared():
    """Without a plan each worker has an even share of what one process would take."""
    shares = [share_of(ServerConfig(mixers=(), workers=workers), 0, 1).memory_mib for workers in (1, 4)]

    assert shares[1] == shares[0] // 4 > 0


def test_threads_that_were_asked_for():
    """A number of threads that was asked for is that of each worker."""
    assert share_of(ServerConfig(mixers=(), workers=2, num_threads=7), 0, 1).num_threads == 7


@pytest.mark.parametrize(
    ("index", "num_gpus", "visible", "expected"),
    [
        (0, 0, None, None),
        (1, 2, None, "1"),
        (5, 4, None, "1"),
        (1, 2, "3, 5", "5"),
        (2, 2, "GPU-a,GPU-b", "GPU-a"),
        (1, 1, "7,-1,8", "7"),
    ],
)
def test_each_worker_sees_one_gpu(index: int, num_gpus: int, visible: str | None, expected: str | None):
    """Worker i has the i-th of the GPUs that the program may see, and workers beyond their number share them."""
    variables = gpu_variables(index, num_gpus, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})

    assert variables == ({} if expected is None else {"CUDA_VISIBLE_DEVICES": expected})
