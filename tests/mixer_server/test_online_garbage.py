"""Whatever bytes come, co-training answers with a refusal that makes sense, and its session goes on."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from mutations import spoil
from online_sessions import Owner, items_of, owned, pipeline, settings_of, training_server
from serving import WAIT_S, wait_until

from samix.cotraining.wire import (
    SERVICE,
    TrainCall,
    batch_message,
    pack_weights,
    settings_message,
    weights_header,
)
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.online import floating_state
from trainer.methods.online import CoTraining

CODE = grpc.StatusCode
SENSIBLE = {
    *(CODE.OK, CODE.INVALID_ARGUMENT, CODE.NOT_FOUND, CODE.PERMISSION_DENIED, CODE.ALREADY_EXISTS),
    *(CODE.FAILED_PRECONDITION, CODE.RESOURCE_EXHAUSTED, CODE.DATA_LOSS),
    CODE.DEADLINE_EXCEEDED,  # of a batch whose step was spoilt to a later one: it waits for its weights
}
_PATIENCE_S = 2.0
INPUTS = 60
"""Of each method."""


@pytest.fixture(scope="module")
def method() -> CoTraining:
    return pipeline("paper")


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory, method: CoTraining) -> Iterator[Owner]:
    with (
        training_server(tmp_path_factory.mktemp("online"), memory_mib=128, max_sessions=3) as server,
        owned(server, settings_of(method)) as one,
    ):
        one.open()
        one.send(0, method.classifier)
        yield one


def good_messages(name: str, owner: Owner, method: CoTraining) -> list[Any]:
    key = owner.session.key.message()
    match name:
        case "OpenSession":
            other = pb.SessionKey(session="other", token=bytes(range(32)))
            return [pb.OpenSessionRequest(key=other, settings=settings_message(owner.session.settings))]
        case "GetSession":
            return [pb.GetSessionRequest(key=key)]
        case "ExportMixer":
            return [pb.ExportMixerRequest(key=key, name="mine")]
        case "CloseSession":
            return [pb.CloseSessionRequest(key=pb.SessionKey(session="another", token=bytes(range(32))))]
        case "SendWeights":
            state = floating_state(method.classifier)
            shapes = {name: tuple(value.shape) for name, value in state.items()}
            data = pack_weights(state, list(shapes), "bfloat16").numpy().tobytes()
            header = weights_header(key, shapes, step=0, kind="bfloat16")
            return [pb.SendWeightsRequest(header=header, chunk=data[:999]), pb.SendWeightsRequest(chunk=data[999:])]
    (item,) = items_of(0, 1, "paper")
    call = TrainCall(step=0, images=item.images, labels=item.labels, plans=item.plans)
    pixels = item.images.numpy().tobytes()
    batch = pb.CoTrainRequest(batch=batch_message(call, 1.0), pixel_bytes=len(pixels), chunk=pixels)
    return [pb.CoTrainRequest(join=pb.RankJoin(key=key)), batch]


def caller(channel: grpc.Channel, name: str) -> Callable[[Iterator[bytes]], Any]:
    path = f"/{SERVICE}/{name}"
    match name:
        case "CoTrain":
            return lambda messages: list(channel.stream_stream(path)(messages, timeout=_PATIENCE_S))
        case "SendWeights":
            return lambda messages: channel.stream_unary(path)(messages, timeout=WAIT_S)
        case "ExportMixer":
            return lambda messages: list(channel.unary_stream(path)(next(messages), timeout=WAIT_S))
    return lambda messages: channel.unary_unary(path)(next(messages), timeout=WAIT_S)


@pytest.mark.parametrize("name", ["OpenSession", "GetSession", "ExportMixer", "CloseSession", "SendWeights", "CoTrain"])
def test_garbage_is_refused(owner: Owner, method: CoTraining, name: str):
    """Messages that were spoilt are answered with a status of the documented ones, never with INTERNAL."""
    call = caller(owner.session.connection.line().channel, name)
    good = [message.SerializeToString() for message in good_messages(name, owner, method)]

    codes = {answered(call, spoilt(good, random.Random(f"{name}/{number}"))) for number in range(INPUTS)}

    assert codes <= SENSIBLE
    assert codes & {CODE.INVALID_ARGUMENT, CODE.NOT_FOUND}
    wait_until(lambda: not owner.state().ranks)
    assert owner.state().has_weights


def spoilt(messages: list[bytes], rng: random.Random) -> Iterator[bytes]:
    at = rng.randrange(len(messages))
    return iter([spoil(data, rng) if number == at else data for number, data in enumerate(messages)])


def answered(call: Callable[[Iterator[bytes]], Any], messages: Iterator[bytes]) -> grpc.StatusCode:
    try:
        call(messages)
    except grpc.RpcError as error:
        return error.code()  # pyright: ignore[reportAttributeAccessIssue] - every one of a call is also the call
    return CODE.OK
