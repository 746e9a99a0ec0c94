"""Clients that post one batch over a connection of their own, as stock gRPC would: nothing of our client library."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import takewhile
from types import TracebackType
from typing import Self

import grpc

from samix.errors import MixerBroken, MixerError
from samix.framing import Framed, chunks, join
from samix.mixer.v1 import mixer_pb2 as pb
from samix.status import from_refusal, from_rpc_error
from samix.wire import CLIENT_KEY, MixCall, encode_request

SERVICE = "/samix.mixer.v1.MixerService/"

_CHUNK_BYTES = 1 << 20
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # else all channels of a process share one connection
    ("grpc.enable_retries", 0),
)


class Post:
    """A batch that is ready to be sent, by many at once."""

    def __init__(self, call: MixCall) -> None:
        framed = encode_request(call)
        self.whole = join(framed.message, framed.bulk)
        """As the message of a unary call."""
        self._framed = framed

    def messages(self, sequence: int) -> Iterator[bytes]:
        """Yield it as the messages of a batch on a stream."""
        return stream_messages(sequence, self._framed, _CHUNK_BYTES)


def stream_messages(
    sequence: int, framed: Framed[pb.MixRequest], chunk_bytes: int, timeout_ms: int = 0
) -> Iterator[bytes]:
    """Yield a batch as the messages of a stream."""
    message = pb.MixStreamRequest(
        sequence=sequence, request=framed.message, pixel_bytes=len(framed.bulk), timeout_ms=timeout_ms
    )
    for chunk in chunks(framed.bulk, chunk_bytes):
        yield join(message, chunk)
        message = pb.MixStreamRequest(sequence=sequence)


def open_channel(target: str) -> grpc.Channel:
    """Open a connection that no other channel shares."""
    return grpc.insecure_channel(target, options=_OPTIONS)


class PostingClient(ABC):
    """Sends one post, as often as it takes, over a connection of its own; for one thread, in a `with` block."""

    def __init__(self, target: str, post: Post, name: str) -> None:
        self._target = target
        self._post = post
        self._metadata = ((CLIENT_KEY, name),)
        self._channel = open_channel(target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    @abstractmethod
    def send(self, timeout_s: float) -> MixerError | None:
        """Send it once; None if it was answered, else why not."""


class UnaryClient(PostingClient):
    """Sends it as the one message of a Mix."""

    def send(self, timeout_s: float) -> MixerError | None:
        """Send it once; None if it was answered, else why not."""
        try:
            self._channel.unary_unary(f"{SERVICE}Mix")(self._post.whole, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return from_rpc_error(error, self._target)
        return None


class StreamClient(PostingClient):
    """Sends it as the only batch of a stream, as far as the server wants it."""

    def send(self, timeout_s: float) -> MixerError | None:
        """Send it once; None if it was answered, else why not."""
        stream = self._channel.stream_stream(f"{SERVICE}MixStream")
        outcome: MixerError | None = MixerBroken("the stream ended without an answer")
        is_refused = threading.Event()
        messages = takewhile(lambda _: not is_refused.is_set(), self._post.messages(1))
        try:
            for data in stream(messages, timeout=timeout_s, metadata=self._metadata):
                message = pb.MixStreamResponse.FromString(data)
                if message.HasField("refusal"):
                    outcome = from_refusal(message.refusal, self._target)
                    is_refused.set()
                elif message.HasField("response"):
                    outcome = None
        except grpc.RpcError as error:
            return from_rpc_error(error, self._target)
        return outcome
