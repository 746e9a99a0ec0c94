"""MixStream: many batches over one call, each answered or refused in its turn.

Two threads belong to a stream: the one gRPC gives it writes the answers, the other reads what comes. Between them lies
a queue no longer than the stream's credit. So a peer that sends too much, too slowly or does not read loses its stream,
and costs the others nothing.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc

from mixer_server.front.edge import caller_of, host_of, refuse
from mixer_server.front.patience import Patience
from mixer_server.front.request_config import RequestConfig
from mixer_server.front.stream import METHOD, Stream
from mixer_server.front.stream_batch import CHUNK_BYTES, StreamServices
from mixer_server.scheduling.budget import Reservation
from samix.errors import MixerOverloaded

STREAM_BYTES = 3 * CHUNK_BYTES
"""Memory that an open stream may need beside its batches: a chunk that was read, one that comes, and what gRPC reads
ahead."""
_RETRY_AFTER_S = 0.5
"""When to come again for a stream; one that idles ends within seconds."""


class Streaming:
    """Answers MixStream, on no more streams at once than are allowed."""

    def __init__(self, config: RequestConfig, *, services: StreamServices, patience: Patience) -> None:
        self._config = config
        self._services = services
        self._patience = patience
        self._lock = threading.Lock()
        self._streams: set[Stream] = set()
        self._hosts: Counter[str] = Counter()  # of the streams over TCP
        self._is_draining = False
        # The other half is for batches: streams that leave them no room would be of no use.
        self._max_streams = min(config.max_streams, services.budget.max_bytes // 2 // STREAM_BYTES)
        self._readers = ThreadPoolExecutor(config.max_streams, "stream-reader")
        services.metrics.streams_open.set_function(lambda: len(self._streams))

    def handler(self) -> grpc.RpcMethodHandler:
        """Make what gRPC calls for the method."""
        return grpc.stream_stream_rpc_method_handler(self._answer)

    def drain(self) -> None:
        """Ask the clients of all streams to send no more; what they sent is answered."""
        with self._lock:
            self._is_draining = True
            streams = list(self._streams)
        for stream in streams:
            stream.ask_to_end()

    def close(self) -> None:
        """Wait for the readers; the calls must have ended before."""
        self._readers.shutdown()

    def _answer(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = Stream(
            context,
            caller=caller_of(context),
            config=self._config,
            services=self._services,
            patience=self._patience,
        )
        host = host_of(context)
        room = self._enter(stream, host, context)
        try:
            if context.add_callback(stream.abandon):
                self._readers.submit(stream.read, messages)
                yield from stream.write()
        finally:
            stream.abandon()
            room.release()
            with self._lock:
                self._streams.discard(stream)
                self._hosts[host] -= 1
                self._hosts += Counter()  # forgets whose count is 0

    def _enter(self, stream: Stream, host: str, context: grpc.ServicerContext) -> Reservation:
        try:
            room = self._services.budget.reserve(STREAM_BYTES)
        except MixerOverloaded as error:
            refuse(self._services.metrics, METHOD, context, error)
        with self._lock:
            obstacle = self._obstacle(host)
            if obstacle is None:
                self._streams.add(stream)
                self._hosts[host] += 1
        if obstacle is not None:
            room.release()
            sentence = f"{obstacle}, no more are taken"
            refuse(self._services.metrics, METHOD, context, MixerOverloaded(sentence, _RETRY_AFTER_S))
        if self._is_draining:
            stream.ask_to_end()
        return room

    def _obstacle(self, host: str) -> str | None:
        """Say what is full; None where there is room for a stream from this host."""
        if len(self._streams) >= self._max_streams:
            return f"{self._max_streams} streams are open"
        most = self._config.max_streams_per_client
        if self._hosts[host] >= most and not host.startswith("unix"):
            return f"{most} streams of {host} are open"
        return None
