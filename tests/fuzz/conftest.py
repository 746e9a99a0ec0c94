"""A server to be fuzzed, and what became of all inputs."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from child_server import ChildServer, child_server
from framing import whole
from fuzzing import ANSWER_S, SEED, Tally
from serving import random_call, tiny_mixer
from shard_making import write_noise_shards

from samix.mixing.artefact import save_artefact
from samix.wire import encode_request

_FLAGS = (
    *("--requests.max-message-mib", "4", "--requests.max-upload-s", "5", "--requests.stream-idle-s", "5"),
    *("--shared-memory-mib", "8", "--leases.max-leases", "6", "--leases.handshake-s", "0.2"),
    *("--datasets.num-workers", "1", "--datasets.lease-s", "5", "--datasets.read-ahead", "1"),
)
_TALLIES = pytest.StashKey[list[Tally]]()

MIX = "/samix.mixer.v1.MixerService/Mix"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shards of the dataset `noise` lie."""
    folder = tmp_path_factory.mktemp("shards")
    write_noise_shards(folder, [20, 20])
    return folder


@pytest.fixture(scope="session")
def server(folder: Path, shards: Path) -> Iterator[ChildServer]:
    """A server, which must end well after everything."""
    path = folder / "tiny.safetensors"
    save_artefact(path, tiny_mixer(), {})
    with child_server(folder, "--mixers", str(path), "--dataset", f"noise={shards}/*.tar", *_FLAGS) as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(ANSWER_S) == 0, running.complaints()
        assert not running.complaints()


@pytest.fixture(scope="session")
def channel(server: ChildServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.addresses["grpc"], options=[("grpc.max_send_message_length", -1)]) as opened:
        yield opened


@pytest.fixture(scope="session")
def unix_channel(server: ChildServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"unix:{server.addresses['unix']}") as opened:
        yield opened


@pytest.fixture(scope="session")
def ask_well(channel: grpc.Channel) -> Callable[[], bytes]:
    """Ask for a good batch."""
    data = whole(encode_request(random_call(2))).SerializeToString()
    mix = channel.unary_unary(MIX)
    return lambda: mix(data, timeout=ANSWER_S)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """What becomes of the inputs of a path; each module names its own, and its share of all inputs."""
    path, share = request.module.PATH
    tally = Tally(path=path, share=share)
    request.config.stash.setdefault(_TALLIES, []).append(tally)
    return tally


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    tallies = terminalreporter.config.stash.get(_TALLIES, [])
    if terminalreporter.verbosity >= 0 and tallies:
        terminalreporter.section(f"fuzzing, SAMIX_FUZZ_SEED={SEED}")
        for tally in tallies:
            terminalreporter.line(tally.line())
        terminalreporter.line(f"together: {sum(tally.inputs for tally in tallies)} inputs")
