"""Whether this server takes work: one answer for gRPC health checks, for `/readyz` and for callers of Mix."""

from collections.abc import Iterable

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from mixer_server.batcher import SHUTTING_DOWN
from samix.errors import MixerUnavailable

SERVICE = "samix.mixer.v1.MixerService"

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Readiness:
    """Mixers become ready one by one; the server is ready when all are, until it drains."""

    def __init__(self, mixers: Iterable[str]) -> None:
        self._cold = tuple(mixers)  # replaced, never changed: other threads read it
        self._is_draining = False
        self._health = health.HealthServicer()

    def attach(self, server: grpc.Server) -> None:
        """Answer `grpc.health.v1` on this server: for "", the service, and model/NAME of each mixer."""
        for name in ("", SERVICE, *map(_model, self._cold)):
            self._health.set(name, _NOT_SERVING)  # HealthServicer starts with "" serving
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)

    @property
    def obstacle(self) -> str | None:
        """Why the server is not ready; None when it is."""
        if self._is_draining:
            return SHUTTING_DOWN
        if self._cold:
            return f"warming up {', '.join(self._cold)}"
        return None

    def is_ready(self, mixer: str) -> bool:
        """Whether this mixer takes work."""
        return not self._is_draining and mixer not in self._cold

    def check(self, mixer: str) -> None:
        """Refuse work that cannot be done now.

        Raises:
            MixerUnavailable: while the mixer warms up and once the server drains.
        """
        if self._is_draining:
            raise MixerUnavailable(SHUTTING_DOWN)
        if mixer in self._cold:
            raise MixerUnavailable(f"mixer {mixer!r} is warming up")

    def set_ready(self, mixer: str) -> None:
        """Say that a mixer has been warmed up."""
        self._cold = tuple(name for name in self._cold if name != mixer)
        self._health.set(_model(mixer), _SERVING)
        if not self._cold:
            self._health.set(SERVICE, _SERVING)
            self._health.set("", _SERVING)

    def drain(self) -> None:
        """Say that the server goes away; there is no way back."""
        self._is_draining = True
        self._health.enter_graceful_shutdown()


def _model(mixer: str) -> str:
    return f"model/{mixer}"
