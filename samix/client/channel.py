"""The connection to a mixer server: made at first use, by the process that uses it.

A channel does not survive a fork (grpc/grpc#32992: hangs and crashes under load). A client may therefore be made before
data loading workers fork, but once it was used, a fork has to connect anew.
"""

import os
import socket
import threading

from samix.client.attempts import Attempt
from samix.client.config import ClientConfig
from samix.client.sharing import Sharing
from samix.client.streams import Streams
from samix.client.timers import Timers
from samix.client.unary import Line, Method, closed_error, start_unary
from samix.credentials import open_channel, open_tokens
from samix.errors import BadBatch, InputError
from samix.framing import Framed
from samix.targets import is_target
from samix.wire import CLIENT_KEY


def check_targets(targets: str) -> list[str]:
    """Split the addresses of replicas, and refuse what cannot be connected to.

    Raises:
        InputError: unless each is `host:port`, `dns:///name:port` or `unix:///path`, and named once.
    """
    split = targets.split(",")
    for target in split:
        if not is_target(target):
            raise InputError(f"a mixer's address is host:port, dns:///name:port or unix:///path, got {target!r}")
    if len(set(split)) < len(split):
        raise InputError(f"each replica must be named once, got {targets!r}")
    return split


class Connection:
    """A channel to one target. Safe for threads; pickles as a fresh connection to the same target."""

    def __init__(self, target: str, config: ClientConfig) -> None:
        self.target = target
        self._config = config
        self._lock = threading.Lock()
        self._line: Line | None = None
        self._streams: Streams | None = None
        self._sharing: Sharing | None = None
        self._timers = Timers()
        self._process_id: int | None = None
        self._is_closed = False

    def __reduce__(self) -> tuple:
        return Connection, (self.target, self._config)

    def check_process(self) -> None:
        """Refuse to be used by a fork of the process that opened the channel.

        Raises:
            InputError: if this process is one.
        """
        if self._was_forked():
            raise InputError(
                f"the mixer at {self.target} was used before this process was forked; connect in the worker"
            )

    def start(self, method: Method, request: Framed, timeout_s: float) -> Attempt:
        """Send `request`: mixes on a stream where the server has them, all else as a call of its own.

        Raises:
            BadBatch: if the request is over `max_message_bytes`.
            InputError: if the channel was opened before this process was forked.
            MixerCancelled: if the connection is closed.
        """
        line, streams = self._open()
        slot = None
        if method == "Mix" and self._sharing is not None:
            request, slot = self._sharing.place(request)
        try:
            attempt = self._send(line, streams if method == "Mix" else None, method, request, timeout_s)
        except BaseException:
            if slot is not None:
                slot.release()
            raise
        if slot is not None:
            attempt.add_done_callback(lambda _: slot.release())
        return attempt

    def line(self) -> Line:
        """Open the channel, for calls of another service.

        Raises:
            InputError: if it was opened before this process was forked.
            MixerCancelled: if the connection is closed.
        """
        return self._open()[0]

    def close(self) -> None:
        """End the connection; calls under way end as cancelled."""
        if self._was_forked():
            return  # the channel belongs to the parent
        with self._lock:
            self._is_closed = True
            line, streams, sharing = self._line, self._streams, self._sharing
        if streams is not None:
            streams.close()
        if line is not None:
            line.channel.close()
        if sharing is not None:
            sharing.close()
        self._timers.close()

    def _send(self, line: Line, streams: Streams | None, method: Method, request: Framed, timeout_s: float) -> Attempt:
        if request.num_bytes > self._config.max_message_bytes:  # chunks are smaller, so gRPC would not notice
            raise BadBatch(
                f"the request has {request.num_bytes} bytes, max_message_bytes is {self._config.max_message_bytes}; "
                "send smaller batches, or raise it here and on the server"
            )
        try:
            if streams is not None:
                return streams.start(request, timeout_s)
            return start_unary(line, method, request, timeout_s)
        except ValueError as err:  # gRPC's answer when another thread closes the channel right now
            raise closed_error(self.target) from err

    def _open(self) -> tuple[Line, Streams | None]:
        self.check_process()  # before the lock, which the parent may have held at the fork
        with self._lock:
            if self._is_closed:
                raise closed_error(self.target)
            if self._line is None:
                self._line = self._open_line()
                self._process_id = os.getpid()
                if self._config.shared_memory_mib and (path := _unix_path(self.target)):
                    self._sharing = Sharing(path, self._config.shared_memory_mib << 20)
                if self._config.streams.max_batches:
                    self._streams = self._make_streams(self._line)
            return self._line, self._streams

    def _open_line(self) -> Line:
        tokens = open_tokens(self.target, self._config.credentials)
        tokens.metadata()  # a file that cannot be read is told here, before there is anything to close
        channel = open_channel(self.target, self._config.credentials, _channel_options(self._config))
        name = self._config.name or f"{socket.gethostname()}:{os.getpid()}"
        return Line(channel=channel, target=self.target, named=((CLIENT_KEY, name),), tokens=tokens)

    def _make_streams(self, line: Line) -> Streams:
        return Streams(
            line,
            self._config.streams,
            timers=self._timers,
            max_answer_bytes=self._config.max_message_bytes,
        )

    def _was_forked(self) -> bool:
        return self._process_id not in (None, os.getpid())


def _unix_path(target: str) -> str | None:
    scheme, _, path = target.partition("://")
    return path if scheme == "unix" else None


def _channel_options(config: ClientConfig) -> list[tuple[str, int | str]]:
    # No compression: gzip handles 26 to 46 MB of pixels a second.
    return [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.keepalive_time_ms", round(config.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A server that restarts is found again within two seconds instead of two minutes.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # All addresses of a name are replicas.
        ("grpc.lb_policy_name", "round_robin"),
        # A replica that was added to a name is found after a connection was lost, but not before.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        # See retrying.py: sending again is done there, where it can be counted.
        ("grpc.enable_retries", 0),
        # http_proxy is set on many clusters for downloads; batches must not take that way.
        ("grpc.enable_http_proxy", 0),
    ]
