"""What co-training refuses, with which status, and that the session goes on."""

import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from online_sessions import (
    BATCH,
    Owner,
    goes_on,
    items_of,
    owned,
    pipeline,
    refused,
    settings_of,
    training_server,
)
from serving import WAIT_S, wait_until

from mixer_server.app import MixerServer
from samix.cotraining.settings import SessionSettings
from samix.cotraining.wire import pack_weights, weights_header
from samix.framing import join
from samix.mixer.v1 import online_pb2 as pb
from samix.mixer.v1.online_pb2_grpc import OnlineServiceStub
from samix.mixing.online import floating_state
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


def weights_of(owner: Owner, method: CoTraining, step: int = 1) -> tuple[pb.WeightsHeader, bytes]:
    """Make good weights, header and bytes."""
    state = floating_state(method.classifier)
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    data = pack_weights(state, list(shapes), "float32").numpy().tobytes()
    header = weights_header(owner.session.key.message(), shapes, step=step, kind="float32")
    header.sha256 = hashlib.sha256(data).digest()
    return header, data


def send(stub: OnlineServiceStub, header: pb.WeightsHeader, *chunks: bytes) -> pb.SendWeightsResponse:
    messages = [pb.SendWeightsRequest(header=header, chunk=chunks[0])]
    messages += [pb.SendWeightsRequest(chunk=chunk) for chunk in chunks[1:]]
    return stub.SendWeights(iter(messages), timeout=WAIT_S)


def spoiled_weights(kind: str, header: pb.WeightsHeader, data: bytes) -> tuple[pb.WeightsHeader, list[bytes]]:
    chunks = [data[:1000], data[1000:]]
    match kind:
        case "checksum":
            header.sha256 = bytes(32)
        case "a flipped bit":
            chunks[1] = bytes([chunks[1][0] ^ 1]) + chunks[1][1:]
        case "cut short":
            chunks.pop()
        case "shape":
            header.tensors[0].shape[0] += 1
        case "name":
            header.tensors[0].name = "another"
        case "order":
            header.tensors[0].CopyFrom(header.tensors[1])
        case "ten times the size":
            chunks = [data] * 10
        case "ten times the size, said":
            header.num_bytes *= 10
        case "NaN":
            chunks = [data[:4000] + b"\xff" * 4 + data[4004:]]
            header.sha256 = hashlib.sha256(chunks[0]).digest()
        case "format":
            header.format = pb.WEIGHT_FORMAT_UNSPECIFIED
        case "step":
            header.step = 1 << 62
        case "another session":
            header.key.session = "nobody"
        case "another token":
            header.key.token = bytes(32)
        case "no token":
            header.key.token = b""
    return header, chunks


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("checksum", CODE.DATA_LOSS),
        ("a flipped bit", CODE.DATA_LOSS),
        ("cut short", CODE.DATA_LOSS),
        ("shape", CODE.INVALID_ARGUMENT),
        ("name", CODE.INVALID_ARGUMENT),
        ("order", CODE.INVALID_ARGUMENT),
        ("ten times the size", CODE.INVALID_ARGUMENT),
        ("ten times the size, said", CODE.INVALID_ARGUMENT),
        ("NaN", CODE.INVALID_ARGUMENT),
        ("format", CODE.INVALID_ARGUMENT),
        ("step", CODE.INVALID_ARGUMENT),
        ("another session", CODE.NOT_FOUND),
        ("another token", CODE.PERMISSION_DENIED),
        ("no token", CODE.INVALID_ARGUMENT),
    ],
)
def test_bad_weights_are_refused(
    owner: Owner, stub: OnlineServiceStub, method: CoTraining, kind: str, code: grpc.StatusCode
):
    """Weights that are damaged, not finite, too large or somebody else's are refused, and the session goes on."""
    header, chunks = spoiled_weights(kind, *weights_of(owner, method))

    assert refused(lambda: send(stub, header, *chunks)) is code

    assert owner.state().weights_step == 0
    assert goes_on(owner)
    owner.send(1, method.classifier)
    assert goes_on(owner)


def test_old_weights_are_refused(owner: Owner, stub: OnlineServiceStub, method: CoTraining):
    """The copy does not follow backwards; the same weights again are no harm."""
    owner.ask(items_of(0, 1, "paper"))
    owner.send(1, method.classifier)

    assert send(stub, *weights_of(owner, method, step=1)).weights_step == 1
    assert refused(lambda: send(stub, *weights_of(owner, method, step=0))) is CODE.FAILED_PRECONDITION


def test_weights_beside_others_come_again(
    server: MixerServer, owner: Owner, stub: OnlineServiceStub, method: CoTraining
):
    """While a set of weights is on its way another is refused with a hint when to come again, which senders follow."""
    desk = server.sessions.get(owner.session.key.message()).desk
    desk.begin_weights(1)

    assert refused(lambda: send(stub, *weights_of(owner, method))) is CODE.RESOURCE_EXHAUSTED

    desk.end_weights()
    owner.send(1, method.classifier)


def test_half_the_bytes_are_enough(server: MixerServer, settings: SessionSettings, method: CoTraining):
    """Weights may travel as bfloat16."""
    with owned(server, settings) as one:
        one.open()
        assert one.sender is not None
        one.sender.offer(0, floating_state(method.classifier), "bfloat16")
        assert one.sender.wait_sent(WAIT_S)

        assert goes_on(one)


def first_of(stream: Iterator[pb.CoTrainResponse]) -> pb.CoTrainResponse:
    return next(iter(stream))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"rank": 0}, CODE.ALREADY_EXISTS),
        ({"rank": 1}, CODE.INVALID_ARGUMENT),
        ({"key": pb.SessionKey(session="nobody", token=bytes(32))}, CODE.NOT_FOUND),
        ({"key": pb.SessionKey(session="../nobody", token=bytes(32))}, CODE.INVALID_ARGUMENT),
        ({"token": bytes(32)}, CODE.PERMISSION_DENIED),
        ({"token": bytes(4)}, CODE.INVALID_ARGUMENT),
    ],
    ids=["twice", "no such rank", "no such session", "no name", "another token", "short token"],
)
def test_who_may_not_join_is_refused(owner: Owner, stub: OnlineServiceStub, changes: Any, code: grpc.StatusCode):
    """A rank that is connected, or that is none of the session's, does not join, and the session goes on."""
    owner.ask(items_of(0, 1, "paper"))
    join_ = pb.RankJoin(key=owner.session.key.message())
    join_.key.token = changes.pop("token", join_.key.token)
    join_.MergeFrom(pb.RankJoin(**changes))

    assert refused(lambda: first_of(stub.CoTrain(iter([pb.CoTrainRequest(join=join_)]), timeout=WAIT_S))) is code

    assert owner.learned(0).step == 0
    assert owner.ranks[0].credits == 2


def spoiled_batch(kind: str) -> dict[str, Any]:
    (item,) = items_of(0, 1, "paper")
    plan = pb.StepPlan(lam=item.plans.mixers.lam.tolist(), partner=item.plans.mixers.partner.tolist())
    batch = pb.TrainBatch(
        step=0, shape=item.images.shape, labels=item.labels.tolist(), mixers=plan, students=plan, timeout_ms=1000
    )
    pixels = item.images.numpy().tobytes()
    message = pb.CoTrainRequest(batch=batch, pixel_bytes=len(pixels))
    match kind:
        case "label":
            batch.labels[0] = 1000
        case "lam":
            batch.students.lam[0] = float("nan")
        case "partner":
            batch.mixers.partner[0] = batch.mixers.partner[1]
        case "side":
            batch.shape[2] = 8
        case "size":
            batch.shape[0] = BATCH + 1
        case "bytes":
            message.pixel_bytes *= 10
        case "chunk":
            pixels += bytes(1)
        case "cut short":
            pixels = pixels[:-1]
        case "run":
            batch.step = 1000
    message.batch.CopyFrom(batch)
    return {"message": message, "pixels": pixels}


@pytest.mark.parametrize("kind", ["label", "lam", "partner", "run"])
def test_a_bad_batch_is_refused_in_its_place(owner: Owner, stub: OnlineServiceStub, kind: str):
    """A batch that makes no sense is answered by a refusal; the stream goes on."""
    spoiled = spoiled_batch(kind)
    spoiled["message"].chunk = spoiled["pixels"]
    messages = [pb.CoTrainRequest(join=pb.RankJoin(key=owner.session.key.message())), spoiled["message"]]

    answers = list(stub.CoTrain(iter(messages), timeout=WAIT_S))

    assert answers[0].terms.credits == 2
    assert [answer.refusal.code for answer in answers[1:]] == [CODE.INVALID_ARGUMENT.value[0]]
    assert goes_on(owner)


@pytest.mark.parametrize("kind", ["side", "size", "bytes", "chunk", "cut short"])
def test_a_batch_of_another_size_ends_its_stream(owner: Owner, stub: OnlineServiceStub, kind: str):
    """More or other bytes than the session has end the stream before they are kept; the session goes on."""
    spoiled = spoiled_batch(kind)
    spoiled["message"].chunk = spoiled["pixels"]
    messages = [pb.CoTrainRequest(join=pb.RankJoin(key=owner.session.key.message())), spoiled["message"]]

    assert refused(lambda: list(stub.CoTrain(iter(messages), timeout=WAIT_S))) is CODE.INVALID_ARGUMENT

    wait_until(lambda: not owner.state().ranks)
    assert goes_on(owner)


def test_bulk_bytes_are_plain_protobuf(owner: Owner, stub: OnlineServiceStub, method: CoTraining):
    """A stock protobuf client that sends its weights in one message is served like ours."""
    header, data = weights_of(owner, method)
    message = pb.SendWeightsRequest.FromString(join(pb.SendWeightsRequest(header=header), data))
    assert len(message.chunk) == len(data)

    assert send(stub, header, message.chunk).weights_step == 1
