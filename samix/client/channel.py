"""The connection to a mixer server: made at first use, by the process that uses it.

A channel does not survive a fork (grpc/grpc#32992: hangs and crashes under load). A client may therefore be made before
data loading workers fork, but once it was used, a fork has to connect anew.
"""

import os
import re
import threading
from typing import Literal

import grpc
from google.protobuf.message import Message

from samix.client.config import ClientConfig
from samix.errors import InputError, MixerCancelled
from samix.mixer.v1 import mixer_pb2_grpc

Method = Literal["Mix", "GetMixer", "ListMixers"]

_NETWORK_TARGET = re.compile(r"(dns:///)?([\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
_UNIX_TARGET = re.compile(r"unix:///[^\s,]+")


def check_targets(targets: str) -> list[str]:
    """Split the addresses of replicas, and refuse what cannot be connected to.

    Raises:
        InputError: unless each is `host:port`, `dns:///name:port` or `unix:///path`, and named once.
    """
    split = targets.split(",")
    for target in split:
        network = _NETWORK_TARGET.fullmatch(target)
        if not ((network and 1 <= int(network["port"]) <= 65535) or _UNIX_TARGET.fullmatch(target)):
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
        self._channel: grpc.Channel | None = None
        self._stub: mixer_pb2_grpc.MixerServiceStub | None = None
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

    def start(self, method: Method, request: Message, timeout_s: float) -> grpc.Future:
        """Send `request` and return the call, which is a future of the answer and also a `grpc.Call`.

        Raises:
            InputError: if the channel was opened before this process was forked.
            MixerCancelled: if the connection is closed.
        """
        stub = self._open()
        try:
            return getattr(stub, method).future(request, timeout=timeout_s)
        except ValueError as err:  # gRPC's answer when another thread closes the channel right now
            raise self._closed_error() from err

    def close(self) -> None:
        """End the connection; calls under way end as cancelled."""
        if self._was_forked():
            return  # the channel belongs to the parent
        with self._lock:
            self._is_closed = True
            if self._channel is not None:
                self._channel.close()

    def _open(self) -> mixer_pb2_grpc.MixerServiceStub:
        self.check_process()  # before the lock, which the parent may have held at the fork
        with self._lock:
            if self._is_closed:
                raise self._closed_error()
            if self._stub is None:
                self._channel = grpc.insecure_channel(self.target, _channel_options(self._config))
                self._stub = mixer_pb2_grpc.MixerServiceStub(self._channel)
                self._process_id = os.getpid()
            return self._stub

    def _was_forked(self) -> bool:
        return self._process_id not in (None, os.getpid())

    def _closed_error(self) -> MixerCancelled:
        return MixerCancelled(f"the connection to the mixer at {self.target} was closed; connect again")


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
