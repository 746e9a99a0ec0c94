from collections.abc import Iterator

import pytest
from serving import Gate, connect, serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.engine.decoding import Decoder
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer


@pytest.fixture(scope="session")
def mixer() -> FrozenMixer:
    return tiny_mixer()


@pytest.fixture(scope="session")
def server(mixer: FrozenMixer) -> Iterator[MixerServer]:
    with serve(mixer) as running:
        yield running


@pytest.fixture(scope="session")
def stub(server: MixerServer) -> Iterator[MixerServiceStub]:
    with connect(server.addresses["grpc"]) as connected:
        yield connected


@pytest.fixture(scope="session")
def decoder() -> Iterator[Decoder]:
    running = Decoder(2)
    yield running
    running.close()


@pytest.fixture
def gated() -> Iterator[tuple[FrozenMixer, Gate]]:
    held = tiny_mixer()
    gate = Gate(held)
    yield held, gate
    gate.open()
