"""One mixer server from start to end: startup, serving, shutdown."""

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

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

_SPARE_THREADS = 8  # for health checks, refusals and the small methods while all Mix calls wait
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
        self._executor = ThreadPoolExecutor(config.requests.max_in_flight + _SPARE_THREADS, "grpc")
        self._grpc = make_server(self._executor, max_message_mib=config.requests.max_message_mib)
        self._pages = ExitStack()

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
            self._close(0)
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
        self._close(min(_FLUSH_S, max(0, deadline_s - time.monotonic())))
        log.info("stopped", extra={"drained": is_drained})
        return is_drained

    def _bind(self) -> None:
        config = self.config
        servicer = MixerServicer(
            config.requests,
            registry=self.registry,
            readiness=self.readiness,
            batcher=self.batcher,
            metrics=self.metrics,
        )
        servicer.attach(self._grpc, self._edge)
        self.readiness.attach(self._grpc)
        self._watch()
        routes = make_routes(self.registry, self.readiness, self.metrics.registry)
        grpc_port = listen(self._grpc, config.host, config.grpc_port)
        http = serve_pages(routes, config.host, config.http_port)
        self._pages.callback(http.close)
        metrics = serve_metrics(self.metrics.registry, config.host, config.metrics_port)
        self._pages.callback(metrics.close)
        ports = {"grpc": grpc_port, "http": http.port, "metrics": metrics.port}
        self.addresses = {name: format_address(config.host, port) for name, port in ports.items()}
        if config.unix_socket:
            listen_unix(self._grpc, config.unix_socket)
            self.addresses["unix"] = str(config.unix_socket)
        self._grpc.start()

    def _watch(self) -> None:
        self.metrics.watch_queue(lambda: self.batcher.num_requests, lambda: self.batcher.num_images)
        for mixer in self.registry.mixers:
            self.metrics.watch_mixer(mixer, lambda name=mixer.name: self.readiness.is_ready(name))

    def _warm_up(self) -> None:
        self._engine.start()
        for mixer in self.registry.mixers:
            started_s = time.monotonic()
            for side in self.config.warm_up_sides or (mixer.spec.image_size,):
                warm_up(mixer, side)
            self.readiness.set_ready(mixer.name)
            log.info("mixer_ready", extra={"mixer": mixer.name, "warm_up_s": time.monotonic() - started_s})

    def _close(self, grace_s: float) -> None:
        self.batcher.close()
        self._grpc.stop(grace_s).wait()
        self._executor.shutdown()
        self._pages.close()
