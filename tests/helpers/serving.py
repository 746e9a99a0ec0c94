"""A real server on free ports, requests for it, and a gate that holds its passes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from framing import parts, whole
from grpc_health.v1 import health_pb2_grpc

from mixer_server.app import MixerServer
from mixer_server.config import ServerConfig
from mixer_server.hosting.registry import Registry
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1.mixer_pb2_grpc import MixerServiceStub
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import tiny_spec
from samix.wire import MixCall, MixReply, decode_response, encode_request

WAIT_S = 20.0
"""Longest any test waits for something that should come at once."""


def tiny_mixer(name: str = "tiny", seed: int = 0) -> FrozenMixer:
    return random_mixer(tiny_spec(), seed=seed, name=name)


@contextmanager
def serve(*mixers: FrozenMixer, **settings: Any) -> Iterator[MixerServer]:
    ports: dict[str, Any] = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    config = ServerConfig(mixers=(), **(ports | settings))
    server = MixerServer(config, Registry(mixers))
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def serve_folder(folder: Path, **settings: Any) -> Iterator[MixerServer]:
    """Serve what is in a folder, in whatever mode; `on_drain` may be among the settings."""
    ports: dict[str, Any] = {"grpc_port": 0, "http_port": 0, "metrics_port": 0}
    on_drain = settings.pop("on_drain", lambda: None)
    config = ServerConfig(mixers=(folder,), **(ports | settings))
    server = MixerServer(config, Registry(is_filling=config.model_control == "poll"), on_drain=on_drain)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def connect(address: str) -> Iterator[MixerServiceStub]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield MixerServiceStub(channel)


def health_of(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)  # its methods are unknown to type checkers


def random_call(num_images: int = 4, side: int = 32, seed: int = 0, **changes: Any) -> MixCall:
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "mixer": "",
        "pixels": rng.integers(0, 256, (num_images, 3, side, side), np.uint8),
        "lam": rng.uniform(0.1, 0.9, num_images).astype(np.float32),
        "partner": rng.permutation(num_images),
    }
    return MixCall(**values | changes)


def ask(stub: MixerServiceStub, call: MixCall, timeout_s: float = WAIT_S) -> MixReply:
    return decode_response(parts(stub.Mix(whole(encode_request(call)), timeout=timeout_s)), call)


def request(**changes: Any) -> pb.MixRequest:
    """Make a good request, then spoil some fields."""
    message = whole(encode_request(random_call()))
    for name, value in changes.items():
        message.ClearField(name)
        message.MergeFrom(pb.MixRequest(**{name: value}))
    return message


def sample(server: MixerServer, name: str, **labels: str) -> float:
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


def wait_until(is_so: Callable[[], object]) -> None:
    """Ask again and again; for what nobody tells."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it did not come to that"
        threading.Event().wait(0.01)


class Gate:
    """Holds the passes of a mixer from `shut` to `open`."""

    def __init__(self, mixer: FrozenMixer) -> None:
        self._is_open = threading.Event()
        self._is_open.set()
        self._entered = threading.Semaphore(0)
        mixer.net.register_forward_pre_hook(self._hold)

    def shut(self) -> None:
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()

    def wait_until_held(self) -> None:
        assert self._entered.acquire(timeout=WAIT_S), "no pass began"

    def _hold(self, *_: object) -> None:
        if not self._is_open.is_set():
            self._entered.release()
            assert self._is_open.wait(WAIT_S), "nobody opened the gate"
