"""Whether this server takes work: one answer for gRPC health checks, for `/readyz` and for callers of Mix."""

import threading
from functools import partial
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mixer_server.front.telling import Teller
from mixer_server.scheduling.batcher import SHUTTING_DOWN
from samix.errors import MixerUnavailable

SERVICE = "samix.mixer.v1.MixerService"
INFERENCE_SERVICE = "inference.GRPCInferenceService"
DATASET_SERVICE = "samix.mixer.v1.DatasetService"
ONLINE_SERVICE = "samix.mixer.v1.OnlineService"

_SERVICES = (SERVICE, INFERENCE_SERVICE, DATASET_SERVICE, ONLINE_SERVICE)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Readiness:
    """Mixers become ready one by one; the server is ready once those it starts with are, until it drains.

    A mixer that is loaded later does not take readiness back: the trainers of the others must not be sent away.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cold: tuple[tuple[str, str], ...] = ()  # names and versions; replaced, never changed, as is the next
        self._warm: frozenset[tuple[str, str]] = frozenset()
        self._is_open = False
        self._is_draining = False
        self._health = _Health()

    def attach(self, server: grpc.Server, teller: Teller) -> None:
        """Answer `grpc.health.v1` on this server: for "", the services, and model/NAME of each mixer."""
        self._health.teller = teller
        for name in ("", *_SERVICES):
            self._health.set(name, _NOT_SERVING)  # HealthServicer starts with "" serving
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    @property
    def is_draining(self) -> bool:
        """Whether the server goes away."""
        return self._is_draining

    @property
    def obstacle(self) -> str | None:
        """Why the server is not ready; None when it is."""
        if self._is_draining:
            return SHUTTING_DOWN
        if not self._is_open:
            cold = ", ".join(name for name, _ in self._cold)
            return f"warming up {cold}" if cold else "starting"
        return None

    def is_warm(self, mixer: str, version: str = "") -> bool:
        """Whether this version of a mixer has been warmed up; without a version whether any has."""
        return any((mixer, version or other) == (name, other) for name, other in self._warm)

    def is_ready(self, mixer: str, version: str = "") -> bool:
        """Whether a mixer, or this version of it, takes work."""
        return not self._is_draining and self.is_warm(mixer, version)

    def check(self, mixer: str, version: str = "") -> None:
        """Refuse work that cannot be done now; a mixer that was unloaded in the meantime is nothing to refuse.

        Raises:
            MixerUnavailable: while the mixer, or this version of it, warms up and once the server drains.
        """
        if self._is_draining:
            raise MixerUnavailable(SHUTTING_DOWN)
        is_cold = any((mixer, version or other) == (name, other) for name, other in self._cold)
        if is_cold and not self.is_warm(mixer, version):
            raise MixerUnavailable(f"mixer {mixer!r} is warming up")

    def expect(self, mixer: str, version: str) -> None:
        """Say that a version of a mixer is about to be warmed up."""
        with self._lock:
            self._cold = (*self._cold, (mixer, version))
            self._tell(mixer)

    def set_ready(self, mixer: str, version: str) -> None:
        """Say that a version of a mixer has been warmed up."""
        with self._lock:
            self._warm |= {(mixer, version)}
            self._cold = tuple(key for key in self._cold if key != (mixer, version))
            self._tell(mixer)

    def forget(self, mixer: str, version: str) -> None:
        """Say that a version of a mixer is hosted no more."""
        with self._lock:
            self._warm -= {(mixer, version)}
            self._cold = tuple(key for key in self._cold if key != (mixer, version))
            self._tell(mixer)

    def open(self) -> None:
        """Say that all mixers the server starts with have been warmed up."""
        self._is_open = True
        for name in (*_SERVICES, ""):
            self._health.set(name, _SERVING)

    def drain(self) -> None:
        """Say that the server goes away; there is no way back."""
        self._is_draining = True
        self._health.enter_graceful_shutdown()

    def _tell(self, mixer: str) -> None:
        if self.is_warm(mixer):
            status = _SERVING
        else:
            status = _NOT_SERVING if any(name == mixer for name, _ in self._cold) else _SERVICE_UNKNOWN
        self._health.set(f"model/{mixer}", status)


class _Health(health.HealthServicer):
    """Knows services that were withdrawn: Watch says SERVICE_UNKNOWN of them and goes on, Check NOT_FOUND."""

    _lock: threading.RLock  # pyright: ignore[reportInvalidTypeForm] - the library's own, as is the next
    _send_response_callbacks: dict[str, set[Any]]
    teller: Teller
    """What watchers are told with; set before the first of them comes."""

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - gRPC's name
        response = super().Check(request, context)
        if response.status == _SERVICE_UNKNOWN:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return response

    def Watch(self, request: Any, context: grpc.ServicerContext, send_response_callback: Any = None) -> Any:  # noqa: N802
        """Watch, and then forget: the library keeps the name of every service that was ever asked for."""
        tell = self.teller.defer(send_response_callback, context)
        watcher = super().Watch(request, context, tell)
        forget = partial(self._forget, request.service, tell)
        if not context.add_callback(forget):  # the call ended meanwhile; the library's own callback was refused, too
            forget()
        return watcher

    def _forget(self, service: str, send_response_callback: Any) -> None:
        with self._lock:
            watching = self._send_response_callbacks.get(service, set())
            watching.discard(send_response_callback)
            if not watching:
                self._send_response_callbacks.pop(service, None)
