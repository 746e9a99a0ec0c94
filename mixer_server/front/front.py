"""The gRPC side of a mixer server: its methods, and what bounds their callers."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import grpc
from grpc_reflection.v1alpha import reflection

from mixer_server.datasets.checking import Checker
from mixer_server.datasets.datasets import Datasets
from mixer_server.datasets.servicer import DatasetServicer
from mixer_server.datasets.subscriptions import Subscriptions, SubscriptionServices
from mixer_server.front.admission import Admission
from mixer_server.front.edge import Edge
from mixer_server.front.in_flight import InFlight
from mixer_server.front.intake import Intake
from mixer_server.front.patience import Patience
from mixer_server.front.readiness import DATASET_SERVICE, INFERENCE_SERVICE, ONLINE_SERVICE, SERVICE, Readiness
from mixer_server.front.request_config import RequestConfig
from mixer_server.front.roles import ROLES, count_denials
from mixer_server.front.servicer import MixerServicer
from mixer_server.front.stream_batch import StreamServices
from mixer_server.front.streaming import Streaming
from mixer_server.front.telling import Teller
from mixer_server.hosting.registry import Registry
from mixer_server.metrics import MixerMetrics
from mixer_server.oip.servicer import NUM_METHODS, InferenceServicer
from mixer_server.online.servicer import NUM_METHODS as NUM_ONLINE_METHODS
from mixer_server.online.servicer import OnlineServicer
from mixer_server.online.sessions import Sessions
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.budget import MemoryBudget
from services.grpc_server import make_server
from services.security.security import Security

# Mix, Get- and ListMixers, ListDatasets; Check, Watch; reflection; those of inference and of co-training
_METHODS = 7 + NUM_METHODS + NUM_ONLINE_METHODS
_SPARE_THREADS = 8  # that refuse calls while those admitted hold all others
_REFLECTED = (
    *(SERVICE, INFERENCE_SERVICE, DATASET_SERVICE, ONLINE_SERVICE),
    *("grpc.health.v1.Health", reflection.SERVICE_NAME),
)


class Front:
    """Speaks gRPC on a server that `open` makes. `drain` and `join` before `close`."""

    def __init__(
        self,
        config: RequestConfig,
        *,
        registry: Registry,
        readiness: Readiness,
        batcher: Batcher,
        intake: Intake,
        budget: MemoryBudget,
        metrics: MixerMetrics,
        datasets: Datasets,
        sessions: Sessions,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._readiness = readiness
        self._in_flight = InFlight()
        self._patience = Patience(min(config.max_upload_s, config.stream_idle_s, datasets.config.lease_s))
        self._admission = Admission(
            config, budget=budget, patience=self._patience, retry_after_s=batcher.retry_after_s, metrics=metrics
        )
        services = StreamServices(intake=intake, budget=budget, in_flight=self._in_flight, metrics=metrics)
        self._streaming = Streaming(config, services=services, patience=self._patience)
        self._servicer = MixerServicer(
            config, registry=registry, readiness=readiness, intake=intake, budget=budget, metrics=metrics
        )
        self._inference = InferenceServicer(
            registry=registry,
            readiness=readiness,
            intake=intake,
            budget=budget,
            metrics=metrics,
            max_images=config.max_images,
        )
        self._datasets = DatasetServicer(datasets)
        self._subscriptions = Subscriptions(
            datasets.config,
            config,
            SubscriptionServices(
                checker=Checker(config, datasets=datasets, registry=registry, readiness=readiness, intake=intake),
                intake=intake,
                budget=budget,
                patience=self._patience,
                metrics=metrics,
                dataset_metrics=datasets.metrics,
            ),
        )
        self._online = OnlineServicer(sessions, config, patience=self._patience, metrics=metrics)
        self._max_subscriptions = datasets.config.max_subscriptions
        self._teller = Teller(self._patience)
        self._opened = ExitStack()
        self._grace_s = 0.0
        metrics.requests_in_flight.set_function(lambda: self._in_flight.count)

    def open(self, security: Security, *, shares_port: bool = False) -> grpc.Server:
        """Make the server, which listens nowhere yet.

        Args:
            security: looks at all calls first.
            shares_port: as in `make_server`.
        """
        # MixStream and Subscribe count their calls themselves; all others are counted by the admission.
        num_streams = self._config.max_streams + self._max_subscriptions + self._online.num_streams
        num_threads = _METHODS * self._config.max_in_flight + num_streams + _SPARE_THREADS
        executor = ThreadPoolExecutor(num_threads, "grpc")
        server = make_server(
            executor,
            max_message_mib=self._config.max_message_mib,
            interceptors=[*security.interceptors(ROLES, count_denials(self._metrics)), self._admission],
            shares_port=shares_port,
            limits=security.config,
        )
        edge = Edge(self._metrics, self._in_flight)
        self._servicer.attach(server, edge, self._streaming.handler())
        self._inference.attach(server, edge)
        self._datasets.attach(server, edge, self._subscriptions)
        self._online.attach(server, edge)
        self._readiness.attach(server, self._teller)
        reflection.enable_server_reflection(_REFLECTED, server)
        self._patience.start()
        streams = (self._streaming.close, self._subscriptions.close, self._online.close)
        owned = (self._patience.close, *streams, self._teller.close, executor.shutdown)
        for close in (*owned, lambda: self._stop(server)):
            self._opened.callback(close)
        return server

    def drain(self) -> None:
        """Ask clients to send no more on their streams; what they sent is answered. Subscriptions end."""
        self._streaming.drain()
        self._subscriptions.drain()

    def join(self, timeout_s: float) -> bool:
        """Wait until nothing is being answered; False if that takes longer than `timeout_s`."""
        return self._in_flight.join(timeout_s)

    def close(self, grace_s: float) -> None:
        """End what is left: last answers on their way out, idle streams and health watchers.

        Args:
            grace_s: how long they may take, in seconds.
        """
        self._grace_s = grace_s
        self._opened.close()

    def _stop(self, server: grpc.Server) -> None:
        with suppress(ValueError):  # it was started
            server.start()  # gRPC lets go of the addresses of a server only if it runs
        server.stop(self._grace_s).wait()
