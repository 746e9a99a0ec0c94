"""Which sessions a server opens, for whom, and what it holds for them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from online_sessions import BATCH, Owner, goes_on, owned, pipeline, refused, settings_of, training_server
from serving import WAIT_S, sample, serve

from mixer_server.app import MixerServer
from mixer_server.online.footprint import check_and_measure
from samix.client.online.session import SessionKey
from samix.cotraining.settings import SessionSettings
from samix.cotraining.wire import settings_message
from samix.errors import BadBatch, ConfigError, MixerOverloaded
from samix.mixer.v1 import online_pb2 as pb
from samix.mixer.v1.online_pb2_grpc import OnlineServiceStub
from samix.mixing.backbone import BackboneSpec
from samix.mixing.optimise import OptimiserConfig
from trainer.methods.online import CoTraining

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def method() -> CoTraining:
    return pipeline("paper")


@pytest.fixture(scope="module")
def settings(method: CoTraining) -> SessionSettings:
    return settings_of(method)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixerServer]:
    with training_server(tmp_path_factory.mktemp("online"), memory_mib=900, max_sessions=50) as running:
        yield running


@pytest.fixture
def owner(server: MixerServer, settings: SessionSettings, method: CoTraining) -> Iterator[Owner]:
    """A session that has its first weights."""
    with owned(server, settings) as one:
        one.open()
        one.send(0, method.classifier)
        yield one
        one.session.close(timeout_s=WAIT_S)


@pytest.fixture(scope="module")
def stub(server: MixerServer) -> Iterator[OnlineServiceStub]:
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        yield OnlineServiceStub(channel)


def test_a_step_beyond_the_run_is_refused(owner: Owner):
    """A session is not moved to where its run never comes."""
    with pytest.raises(BadBatch, match="the run's end"):
        owner.open(1 << 62)

    assert goes_on(owner)


def test_more_ranks_need_more_memory(owner: Owner, method: CoTraining, server: MixerServer):
    """A session that comes back with more ranks holds what they need; more than there is is refused, and it goes on."""
    held = sample(server, "mixer_online_memory_bytes")
    with owned(server, settings_of(method, world_size=2), owner.session.key) as wider:
        wider.open()
    assert sample(server, "mixer_online_memory_bytes") > held

    server.sessions._budget.max_bytes, most = 1 << 20, server.sessions._budget.max_bytes
    with (
        owned(server, settings_of(method, world_size=3), owner.session.key) as widest,
        pytest.raises(MixerOverloaded, match="co-training"),
    ):
        widest.open()
    server.sessions._budget.max_bytes = most

    owner.open()
    assert sample(server, "mixer_online_memory_bytes") == held
    assert goes_on(owner)


def test_features_that_wait_to_be_learned_are_counted(settings: SessionSettings):
    """Memory covers the features of every batch that is mixed ahead of its learning."""
    side, spec = settings.mixer.image_size, settings.mixer
    narrow = check_and_measure(replace(settings, max_staleness=1))

    wide = check_and_measure(replace(settings, max_staleness=2))

    channels = spec.backbone.channels[spec.stage]
    assert wide - narrow >= BATCH * 4 * channels * spec.tokens(side, side)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"batch_size": 60_000}, CODE.RESOURCE_EXHAUSTED),
        ({"world_size": 0}, CODE.INVALID_ARGUMENT),
        ({"world_size": 100}, CODE.INVALID_ARGUMENT),
        ({"mixer": "{}"}, CODE.INVALID_ARGUMENT),
        ({"learning": "[" * 1000}, CODE.INVALID_ARGUMENT),
        ({"logit_format": pb.LOGIT_FORMAT_UNSPECIFIED}, CODE.INVALID_ARGUMENT),
        ({"max_staleness": 10_000}, CODE.INVALID_ARGUMENT),
        ({"epochs": 1 << 31}, CODE.INVALID_ARGUMENT),
        ({"seed": 1 << 63}, CODE.INVALID_ARGUMENT),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_session_that_cannot_be_is_refused(
    server: MixerServer, stub: OnlineServiceStub, settings: SessionSettings, changes: Any, code: grpc.StatusCode
):
    """What does not fit the server's memory, or makes no sense, begins no session and costs nothing."""
    message = settings_message(settings)
    for name, value in changes.items():
        setattr(message, name, value)
    request = pb.OpenSessionRequest(key=SessionKey.draw("refused").message(), settings=message)
    held = sample(server, "mixer_online_memory_bytes")

    assert refused(lambda: stub.OpenSession(request, timeout=WAIT_S)) is code

    assert sample(server, "mixer_online_memory_bytes") == held


def test_a_network_larger_than_memory_is_refused(stub: OnlineServiceStub, settings: SessionSettings):
    """A network of gigabytes is refused before any of it is allocated."""
    huge = BackboneSpec(name="resnet18", stem="cifar", layers=(1, 1, 1, 1), channels=(1024, 2048, 4096, 8192))
    message = settings_message(replace(settings, mixer=replace(settings.mixer, backbone=huge)))
    request = pb.OpenSessionRequest(key=SessionKey.draw("huge").message(), settings=message)

    assert refused(lambda: stub.OpenSession(request, timeout=WAIT_S)) is CODE.RESOURCE_EXHAUSTED


def test_a_server_without_memory_for_it_trains_nothing(settings: SessionSettings):
    """A server that was not told to train mixers says so, and how to tell it."""
    with serve() as plain, grpc.insecure_channel(plain.addresses["grpc"]) as channel:
        request = pb.GetSessionRequest(key=SessionKey.draw("none").message())

        with pytest.raises(grpc.RpcError) as caught:
            OnlineServiceStub(channel).GetSession(request, timeout=WAIT_S)

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is CODE.FAILED_PRECONDITION
    assert "--online.memory-mib" in (caught.value.details() or "")


def test_a_session_belongs_to_its_token(owner: Owner, stub: OnlineServiceStub):
    """Nobody but the owner looks at, exports, goes on with or ends a session."""
    key = pb.SessionKey(session=owner.session.key.name, token=bytes(32))
    settings = settings_message(owner.session.settings)

    codes = {
        refused(lambda: stub.GetSession(pb.GetSessionRequest(key=key), timeout=WAIT_S)),
        refused(lambda: list(stub.ExportMixer(pb.ExportMixerRequest(key=key), timeout=WAIT_S))),
        refused(lambda: stub.OpenSession(pb.OpenSessionRequest(key=key, settings=settings), timeout=WAIT_S)),
        refused(lambda: stub.CloseSession(pb.CloseSessionRequest(key=key), timeout=WAIT_S)),
    }

    assert codes == {CODE.PERMISSION_DENIED}
    assert goes_on(owner)


def test_an_optimiser_that_no_checkpoint_keeps_is_refused(settings: SessionSettings):
    """LAMB of timm counts its steps beside its state: a session that is restored would begin at 0."""
    learning = replace(settings.learning, optimiser=OptimiserConfig(kind="lamb"))

    with pytest.raises(ConfigError, match="lamb"):
        replace(settings, learning=learning)
