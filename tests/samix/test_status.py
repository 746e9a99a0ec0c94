"""The table of errors and statuses, read both ways over a real connection; test_client_retries.py has every row."""

from collections.abc import Iterator
from concurrent import futures
from itertools import combinations

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from samix.errors import (
    BadBatch,
    MixerBroken,
    MixerError,
    MixerNotFound,
    MixerOverloaded,
)
from samix.status import STATUS_OF, from_refusal, from_rpc_error, to_refusal, to_status


def subclasses(kind: type) -> set[type]:
    return {kind}.union(*(subclasses(child) for child in kind.__subclasses__()))


class Failing(grpc.GenericRpcHandler):
    """Answers every call with `status`, or with code and details bytes as they stand."""

    def __init__(self) -> None:
        self.status: grpc.Status | None = None
        self.raw_details = b""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:  # noqa: ARG002
        return grpc.unary_unary_rpc_method_handler(self._fail)

    def _fail(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.status is not None:
            context.abort_with_status(self.status)
        context.set_trailing_metadata((("grpc-status-details-bin", self.raw_details),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        raise AssertionError("aborting raises")


@pytest.fixture(scope="module")
def failing_and_channel() -> Iterator[tuple[Failing, grpc.Channel]]:
    failing = Failing()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[failing])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield failing, channel
    server.stop(0).wait()


def meet(channel: grpc.Channel) -> MixerError:
    """Call and return what a client would raise."""
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/any/Method")(b"", timeout=20)
    return from_rpc_error(caught.value, "here:1")


def test_table_is_complete() -> None:
    """Every error a mix can end in has one status, and two share one only where one is a kind of the other."""
    shared = [pair for pair in combinations(STATUS_OF, 2) if len({STATUS_OF[error] for error in pair}) == 1]

    assert set(STATUS_OF) == subclasses(MixerError) - {MixerError}
    assert all(issubclass(one, other) or issubclass(other, one) for one, other in shared)


@pytest.mark.parametrize("text", ["x" * 100_000, "ä" * 100_000, "☃" * 100_000, "a\r\n\0b", ""])
def test_any_sentence_can_be_sent(failing_and_channel: tuple[Failing, grpc.Channel], text: str) -> None:
    """A sentence of any length and alphabet arrives as the same kind of error, cut where it would not fit."""
    failing, channel = failing_and_channel
    failing.status = to_status(MixerNotFound(text))

    error = meet(channel)

    assert type(error) is MixerNotFound
    assert text[:200] in str(error)
    assert len(str(error)) < 1200


@pytest.mark.parametrize("delay_s", [0.0, 0.001, 2.5, 86400.0])
def test_retry_info_survives(failing_and_channel: tuple[Failing, grpc.Channel], delay_s: float) -> None:
    """The time to wait arrives as it was sent."""
    failing, channel = failing_and_channel
    failing.status = to_status(MixerOverloaded("queue is full", delay_s))

    error = meet(channel)

    assert isinstance(error, MixerOverloaded)
    assert error.retry_after_s == delay_s


@pytest.mark.parametrize("field", [None, "lam"])
def test_the_wrong_field_is_named(failing_and_channel: tuple[Failing, grpc.Channel], field: str | None) -> None:
    """Which field of a request was wrong arrives by a status and by the refusal of a batch alike."""
    failing, channel = failing_and_channel
    error = BadBatch("lam must lie in [0, 1], got 2", field=field)
    failing.status = to_status(error)

    by_status, by_refusal = meet(channel), from_refusal(to_refusal(error), "here:1")

    assert isinstance(by_status, BadBatch)
    assert isinstance(by_refusal, BadBatch)
    assert (by_status.field, by_refusal.field) == (field, field)
    assert str(by_status) == str(by_refusal)


def packed(seconds: int) -> any_pb2.Any:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.seconds = seconds
    wrapped = any_pb2.Any()
    wrapped.Pack(info)
    return wrapped


def test_negative_delays_count_as_none(failing_and_channel: tuple[Failing, grpc.Channel]) -> None:
    """A server that says to come back in the past is asked again at once."""
    failing, channel = failing_and_channel
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full", details=[packed(-5)])
    failing.status = rpc_status.to_status(status)

    error = meet(channel)

    assert isinstance(error, MixerOverloaded)
    assert error.retry_after_s == 0


@pytest.mark.parametrize(
    "raw_details",
    [
        b"\xff\xff\xff",
        status_pb2.Status(code=code_pb2.INTERNAL, message="full", details=[packed(1)]).SerializeToString(),
        status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="other", details=[packed(1)]).SerializeToString(),
        status_pb2.Status(
            code=code_pb2.RESOURCE_EXHAUSTED,
            message="full",
            details=[any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")],
        ).SerializeToString(),
        status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full").SerializeToString(),
    ],
    ids=["garbage", "other code", "other message", "garbage inside", "no RetryInfo"],
)
def test_exhausted_without_retry_info(failing_and_channel: tuple[Failing, grpc.Channel], raw_details: bytes) -> None:
    """RESOURCE_EXHAUSTED without a RetryInfo that can be read is a batch that is too large."""
    failing, channel = failing_and_channel
    failing.status, failing.raw_details = None, raw_details

    error = meet(channel)

    assert type(error) is BadBatch
    assert "smaller batches" in str(error)


def test_unknown_methods_are_named(failing_and_channel: tuple[Failing, grpc.Channel]) -> None:
    """A server that does not know the method is a fault of the other side that names address and status."""
    failing, channel = failing_and_channel
    failing.status = rpc_status.to_status(status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="no such method"))

    error = meet(channel)

    assert type(error) is MixerBroken
    assert str(error) == "mixer at here:1: no such method (UNIMPLEMENTED)"
