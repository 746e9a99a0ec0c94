"""Requests as calls of their own: what every server understands, at the price of one large message each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from google.protobuf.message import DecodeError, Message

from samix.client.attempts import Attempt, Outcome
from samix.credentials import Metadata, TokenSource
from samix.errors import MixerBroken, MixerCancelled
from samix.framing import Framed, join, split
from samix.mixer.v1 import mixer_pb2 as pb
from samix.request_keys import KEY_METADATA, TRACE_METADATA
from samix.status import from_rpc_error

SERVICE = "/samix.mixer.v1.MixerService/"

Method = Literal["Mix", "GetMixer", "ListMixers"]

_REPLIES: dict[Method, type[Message]] = {
    "Mix": pb.MixResponse,
    "GetMixer": pb.GetMixerResponse,
    "ListMixers": pb.ListMixersResponse,
}


class UnaryAttempt(Attempt):
    """A request as a call of its own."""

    def __init__(self, call: Any, reply: type[Message], target: str) -> None:
        self._call = call
        self._reply = reply
        self._target = target

    def add_done_callback(self, callback: Callable[[Attempt], object]) -> None:
        """Call back when there is an outcome."""
        self._call.add_done_callback(lambda _: callback(self))

    def cancel(self) -> None:
        """Cancel the call."""
        self._call.cancel()

    @property
    def outcome(self) -> Outcome:
        """What became of it; only once it is done."""
        if self._call.code() is not grpc.StatusCode.OK:
            return from_rpc_error(self._call, self._target)
        try:
            return split(self._reply, self._call.result())
        except DecodeError as error:
            return MixerBroken(f"mixer at {self._target}: its answer cannot be read ({error})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """An open channel, and what is said on it."""

    channel: grpc.Channel
    """Belongs to whoever made it."""
    target: str
    """Its address, for messages."""
    named: Metadata
    """What every call says of its client."""
    tokens: TokenSource
    """What every call shows."""

    @property
    def metadata(self) -> Metadata:
        """What is sent with a call that begins now."""
        return *self.named, *self.tokens.metadata()


def closed_error(target: str) -> MixerCancelled:
    """Make the error for calls to a target whose connection was closed."""
    return MixerCancelled(f"the connection to the mixer at {target} was closed; connect again")


def start_unary(line: Line, method: Method, request: Framed, timeout_s: float) -> Attempt:
    """Send `request`.

    Raises:
        ValueError: if the channel is closed.
    """
    method_of = line.channel.unary_unary(SERVICE + method)
    metadata = (*line.metadata, *_names_of(request.message))
    call = method_of.future(join(request.message, request.bulk), timeout=timeout_s, metadata=metadata)
    return UnaryAttempt(call, _REPLIES[method], line.target)


def _names_of(request: Message) -> list[tuple[str, str]]:
    """Say key and span of a mix in the headers too: a server knows them before the message, a proxy never reads it."""
    if not isinstance(request, pb.MixRequest):
        return []
    named = ((KEY_METADATA, request.key), (TRACE_METADATA, request.traceparent))
    return [(name, value) for name, value in named if value]
