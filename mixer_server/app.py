"""One mixer server from start to end: startup, serving, shutdown."""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import grpc

from mixer_server.config import ServerConfig
from mixer_server.datasets.config import parse_datasets
from mixer_server.datasets.datasets import Datasets, open_datasets
from mixer_server.datasets.metrics import DatasetMetrics
from mixer_server.engine.device import open_passes
from mixer_server.engine.engine import Engine, warm_up
from mixer_server.engine.passes import Passes
from mixer_server.front.description import describe
from mixer_server.front.front import Front
from mixer_server.front.intake import Intake
from mixer_server.front.readiness import Readiness
from mixer_server.front.shared_memory import SharedMemory
from mixer_server.hosting.admin import AdminServicer, serve_admin
from mixer_server.hosting.hosting import Hosting
from mixer_server.hosting.mixer_files import Load
from mixer_server.hosting.registry import Registry
from mixer_server.hosting.stock import Stock
from mixer_server.metrics import MixerMetrics
from mixer_server.online.metrics import SessionMetrics
from mixer_server.online.sessions import Sessions, online_device
from mixer_server.pages import make_routes
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.budget import MemoryBudget
from mixer_server.scheduling.memory import planned_mib, request_bytes
from mixer_server.status.board import StatusBoard
from mixer_server.workers.page_secret import worker_door
from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer
from samix.mixing.frozen import FrozenMixer
from services.addresses import format_address
from services.grpc_server import listen, listen_unix
from services.http import serve_pages
from services.metrics import make_registry, serve_metrics
from services.security.connection_limit import limited_connections
from services.security.door import Door
from services.security.security import Security, open_security
from services.tracing import open_tracing

log = logging.getLogger(__name__)

_FLUSH_S = 1.0
_LOOPBACK = "127.0.0.1"


class MixerServer:
    """Hosts the mixers of a registry. `start`, then `stop` once; a failed `start` leaves nothing open."""

    def __init__(
        self,
        config: ServerConfig,
        registry: Registry,
        passes: Passes | None = None,
        *,
        load: Load = load_mixer,
        on_drain: Callable[[], None] | None = None,
        is_worker: bool = False,
    ) -> None:
        """Serve mixers.

        Args:
            config: how.
            registry: the mixers to start with; others come as `config.model_control` says.
            passes: compute, and are closed with the server; None computes on a CPU.
            load: reads those from their files.
            on_drain: begins to stop the program, for an operator who asks; needed with an `admin_socket`. Also for a
                worker that can compute no more: its parent starts another in its place.
            is_worker: whether other processes serve the same port, see `workers.Workers`; pages are then for it alone.
        """
        assert on_drain or not config.admin_socket, "an operator may ask to drain"
        self.config = config
        self.registry = registry
        self.readiness = Readiness()
        self.metrics = MixerMetrics(make_registry())
        self.batcher = Batcher(config.batching, num_lanes=max(1, config.lanes))
        self.addresses: dict[str, str] = {}
        """Where it listens, by grpc, http, metrics and unix; filled by `start`."""
        self._passes = passes or open_passes(config, "cpu")
        self._board = StatusBoard(
            registry=registry,
            readiness=self.readiness,
            metrics=self.metrics,
            batcher=self.batcher,
            max_queue_images=config.batching.max_queue_images,
            has_gallery=config.gallery,
            list_entries=lambda: self.repository.entries(),
        )
        self._engine = Engine(
            self.batcher, self._passes, self.metrics, on_death=self._give_up, on_answer=self._board.note_answer
        )
        self._stock = Stock(
            config.model_control,
            config.mixers,
            Hosting(registry, self.readiness, self.metrics, self._warm_up),
            load,
            keep_versions=config.keep_versions,
            poll_s=config.repository_poll_s,
        )
        self.repository = self._stock.repository
        """The mixer files, and what of them is hosted."""
        self._on_drain = on_drain
        self._is_worker = is_worker
        self._opened = ExitStack()
        self._grace_s = 0.0

    def start(self) -> None:
        """Listen, warm the mixers up and say so: ready when this returns.

        Raises:
            ConfigError: if an address cannot be listened on.
            ShardError: if a dataset cannot be read.
            BadBatch: if a mixer does not take images of a side it is to be warmed up with.
            ArtefactError: if a mixer's masks are not numbers.
        """
        try:
            self._opened.enter_context(open_tracing(self.config.tracing, "samix-mixer"))
            self._opened.callback(self._passes.close)
            security = open_security(self.config.security)
            security.warn_if_open(self.config.host)
            security.watch_files(self.metrics.registry)
            self._watch()
            server = self._open_grpc(security)
            if self._is_worker:  # the others get all connections until this one can answer
                self._serve_pages(_LOOPBACK, worker_door())
                self._host()
                self._listen(server, security)
            else:
                # Before the pages, so that none takes the port that gRPC was told to have.
                self._listen(server, security)
                self._serve_pages(self.config.host, security.door())
                self._host()
        except BaseException:
            self._close()
            raise

    def stop(self) -> bool:
        """Drain: be not ready, take nothing new, answer what was accepted; False if that took too long."""
        deadline_s = time.monotonic() + self.config.exit_timeout_s
        log.info("draining", extra={"requests": self.batcher.num_requests})
        self.readiness.drain()
        self._stock.drain()
        self.front.drain()
        self.sessions.drain()
        self.batcher.close()
        is_drained = self._engine.join(self.config.exit_timeout_s)
        is_drained &= self.front.join(max(0, deadline_s - time.monotonic()))
        # What is left are the last answers on their way out, and health watchers, which never hang up by themselves.
        self._grace_s = min(_FLUSH_S, max(0, deadline_s - time.monotonic()))
        self._close()
        log.info("stopped", extra={"drained": is_drained})
        return is_drained

    def _listen(self, server: grpc.Server, security: Security) -> None:
        config = self.config
        credentials = security.credentials()
        port = listen(server, config.host, config.grpc_port, shares_port=self._is_worker, credentials=credentials)
        self.addresses["grpc"] = format_address(config.host, port)
        self._opened.enter_context(limited_connections(port, config.security.max_connections_per_client))
        if config.unix_socket:
            listen_unix(server, config.unix_socket)
            self.addresses["unix"] = str(config.unix_socket)
        if config.admin_socket:
            self._open_admin(config.admin_socket)
            self.addresses["admin"] = str(config.admin_socket)
        server.start()

    def _serve_pages(self, host: str, door: Door) -> None:
        routes = make_routes(
            self.registry,
            self.readiness,
            self.metrics.registry,
            self._board,
            max_images=self.config.requests.max_images,
        )
        http = serve_pages(routes, host, self.config.http_port, door=door)
        self._opened.callback(http.close)
        metrics = serve_metrics(self.metrics.registry, host, self.config.metrics_port, door=door)
        self._opened.callback(metrics.close)
        self.addresses |= {
            "http": format_address(host, http.port),
            "metrics": format_address(host, metrics.port),
        }

    def _host(self) -> None:
        self._engine.start()
        self._opened.callback(lambda: self._stock.close(self._grace_s))
        self._stock.start()

    def _open_grpc(self, security: Security) -> grpc.Server:
        config = self.config.requests
        memory_mib = _memory_mib(self.config)
        datasets = self._open_datasets()
        sessions = self._open_sessions()
        budget = MemoryBudget(request_bytes(memory_mib), self.batcher.retry_after_s)
        self.metrics.watch_memory(budget)
        self._opened.callback(self._board.close)
        self._board.start(budget, datasets)
        memory = self._open_shared_memory()
        intake = Intake(
            config,
            registry=self.registry,
            readiness=self.readiness,
            batcher=self.batcher,
            passes=self._passes,
            metrics=self.metrics,
            shared_memory=memory,
        )
        self.front = Front(
            config,
            registry=self.registry,
            readiness=self.readiness,
            batcher=self.batcher,
            intake=intake,
            budget=budget,
            metrics=self.metrics,
            datasets=datasets,
            sessions=sessions,
        )
        server = self.front.open(security, shares_port=self._is_worker)
        self._opened.callback(lambda: self.front.close(self._grace_s))
        return server

    def _open_datasets(self) -> Datasets:
        config = self.config
        metrics = DatasetMetrics(self.metrics.registry)
        self.datasets = open_datasets(parse_datasets(config.dataset), config.datasets, metrics)
        self._opened.callback(self.datasets.close)
        self.datasets.start()
        return self.datasets

    def _open_sessions(self) -> Sessions:
        self.sessions = Sessions(
            self.config.online, SessionMetrics(self.metrics.registry), online_device(self.config.device)
        )
        self._opened.callback(self.sessions.close)
        self.sessions.start()
        return self.sessions

    def _open_shared_memory(self) -> SharedMemory | None:
        config = self.config
        if not config.shared_memory_mib or not config.unix_socket:
            return None
        memory = SharedMemory(config.leases, unix_socket=config.unix_socket, max_mib=config.shared_memory_mib)
        memory.start()
        self._opened.callback(memory.close)
        self.metrics.watch_shared_memory(memory)
        return memory

    def _watch(self) -> None:
        self.metrics.describe_process()
        self.metrics.watch_queue(self.batcher, self.config.batching.max_queue_images)
        self._stock.check()

    def _open_admin(self, path: Path) -> None:
        assert self._on_drain is not None
        servicer = AdminServicer(
            self.repository,
            control=self.config.model_control,
            describe=partial(describe, max_images=self.config.requests.max_images),
            drain=self._on_drain,
        )
        admin = serve_admin(servicer, self.metrics, path)
        self._opened.callback(lambda: admin.close(self._grace_s))

    def _warm_up(self, mixer: FrozenMixer) -> None:
        for side in self.config.warm_up_sides or (mixer.spec.image_size,):
            warm_up(self._passes, mixer, side)

    def _give_up(self) -> None:
        self.readiness.drain()
        if self._is_worker and self._on_drain:
            self._on_drain()

    def _close(self) -> None:
        self.batcher.close()
        self._opened.close()


def _memory_mib(config: ServerConfig) -> int:
    """Say what memory is left for mixers and requests, in MiB, beside pictures of datasets and co-training."""
    taken = config.datasets.memory_mib + config.online.memory_mib
    if not taken:
        return config.memory_mib
    planned = planned_mib(config.memory_mib)
    if taken >= planned:
        raise ConfigError(
            f"datasets.memory-mib and online.memory-mib together are {taken}, of the {planned} that memory-mib plans; "
            "leave room for requests"
        )
    return planned - taken
