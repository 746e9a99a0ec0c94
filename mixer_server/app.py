"""One mixer server from start to end: startup, serving, shutdown."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc

from mixer_server.admission import Admission
from mixer_server.batcher import Batcher
from mixer_server.config import ServerConfig
from mixer_server.edge import Edge
from mixer_server.engine import Engine, warm_up
from mixer_server.metrics import MixerMetrics
from mixer_server.pages import make_routes
from mixer_server.readiness import Readiness
from mixer_server.registry import Registry
from mixer_server.servicer import MixerServicer
from services.addresses import format_address
from services.grpc_server import listen, listen_unix, make_server
from services.http import serve_pages
from services.metrics import make_registry, serve_metrics

log = logging.getLogger(__name__)

_METHODS = 5  # Mix, GetMixer and ListMixers; Check and Watch of health
_SPARE_THREADS = 8  # that refuse calls while those admitted hold all others
_FLUSH_S = 1.0


class MixerServer:
    """Hosts the mixers of a registry. `start`, then `stop` once; a failed `start` leaves nothing open."""

    def __init__(self, config: ServerConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.readiness = Readiness(mixer.name for mixer in registry.mixers)
        self.metrics = MixerMetrics(make_registry())
        self.batcher = Batcher(config.batching)
        self.addresses: dict[str, str] = {}
        """Where it listens, by grpc, http, metrics and unix; filled by `start`."""
        self._engine = Engine(self.batcher, registry, self.metrics)
        self._edge = Edge(self.metrics)
        self._opened = ExitStack()
        self._grace_s = 0.0

    def start(self) -> None:
        """Listen, warm the mixers up and say so: ready when this returns.

        Raises:
            ConfigError: if an address cannot be listened on.
            BadBatch: if a mixer does not take images of a side it is to be warmed up with.
            ArtefactError: if a mixer's masks are not numbers.
        """
        try:
            self._bind()
            self._warm_up()
        except BaseException:
            self._close()
            raise

    def stop(self) -> bool:
        """Drain: be not ready, take nothing new, answer what was accepted; False if that took too long."""
        deadline_s = time.monotonic() + self.config.exit_timeout_s
        log.info("draining", extra={"requests": self.batcher.num_requests})
        self.readiness.drain()
        self.batcher.close()
        is_drained = self._engine.join(self.config.exit_timeout_s)
        is_drained &= self._edge.join(max(0, deadline_s - time.monotonic()))
        # What is left are the last answers on their way out, and health watchers, which never hang up by themselves.
        self._grace_s = min(_FLUSH_S, max(0, deadline_s - time.monotonic()))
        self._close()
        log.info("stopped", extra={"drained": is_drained})
        return is_drained

    def _bind(self) -> None:
        config = self.config
        self._watch()
        # First, so that no page takes the port that gRPC was told to have.
        server = self._open_grpc()
        grpc_port = listen(server, config.host, config.grpc_port)
        routes = make_routes(self.registry, self.readiness, self.metrics.registry)
        http = serve_pages(routes, config.host, config.http_port)
        self._opened.callback(http.close)
        metrics = serve_metrics(self.metrics.registry, config.host, config.metrics_port)
        self._opened.callback(metrics.close)
        ports = {"grpc": grpc_port, "http": http.port, "metrics": metrics.port}
        self.addresses = {name: format_address(config.host, port) for name, port in ports.items()}
        if config.unix_socket:
            listen_unix(server, config.unix_socket)
            self.addresses["unix"] = str(config.unix_socket)
        server.start()

    def _open_grpc(self) -> grpc.Server:
        limits = self.config.requests
        admission = Admission(
            max_calls=limits.max_in_flight,
            max_upload_s=limits.max_upload_s,
            retry_after_s=self.batcher.retry_after_s,
            metrics=self.metrics,
        )
        executor = ThreadPoolExecutor(_METHODS * limits.max_in_flight + _SPARE_THREADS, "grpc")
        server = make_server(executor, max_message_mib=limits.max_message_mib, interceptors=[admission])
        servicer = MixerServicer(
            limits, registry=self.registry, readiness=self.readiness, batcher=self.batcher, metrics=self.metrics
        )
        servicer.attach(server, self._edge)
        self.readiness.attach(server)
        admission.start()
        self._opened.callback(admission.close)
        self._opened.callback(executor.shutdown)
        self._opened.callback(lambda: server.stop(self._grace_s).wait())
        return server

    def _watch(self) -> None:
        self.metrics.describe_process()
        self.metrics.watch_queue(self.batcher)
        for mixer in self.registry.mixers:
            self.metrics.watch_mixer(mixer, lambda name=mixer.name: self.readiness.is_ready(name))
        for name, duration_s in self.registry.load_durations_s.items():
            self.metrics.model_load_duration.labels(name).set(duration_s)

    def _warm_up(self) -> None:
        self._engine.start()
        for mixer in self.registry.mixers:
            started_s = time.monotonic()
            for side in self.config.warm_up_sides or (mixer.spec.image_size,):
                warm_up(mixer, side)
            self.readiness.set_ready(mixer.name)
            log.info("mixer_ready", extra={"mixer": mixer.name, "warm_up_s": time.monotonic() - started_s})

    def _close(self) -> None:
        self.batcher.close()
        self._opened.close()
