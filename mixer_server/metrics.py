"""Everything the mixer server counts and times, as Prometheus families.

Labels are closed sets: model and version are those of a hosted mixer, or `unknown` where a request named none.
"""

import importlib.metadata
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from mixer_server.front.shared_memory import SharedMemory
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.budget import MemoryBudget
from mixer_server.status.problems import Problems
from samix.mixing.frozen import FrozenMixer
from services.metrics import SECONDS_BUCKETS

UNKNOWN = "unknown"
STAGES = ("decode", "queue", "compute", "encode")

_RATIO_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
_POWERS_OF_TWO = tuple(2**power for power in range(10))


class MixerMetrics:
    """The families; whoever does the work counts it. Attributes are Prometheus objects of the same name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        seconds = partial(histogram, buckets=SECONDS_BUCKETS)
        model = ["model", "version"]
        self.registry = registry
        self.problems = Problems()
        """What was refused or failed lately, in words."""
        self.requests = counter("mixer_requests", "Calls answered, by gRPC status code.", [*model, "method", "code"])
        self.requests_in_flight = gauge("mixer_requests_in_flight", "Calls, and batches of streams, being answered.")
        self.streams_open = gauge("mixer_streams_open", "Streams that are open.")
        self.stream_first_batch = seconds(
            "mixer_stream_first_batch_seconds", "Time from the opening of a stream to its first answer."
        )
        self.request_duration = seconds(
            "mixer_request_duration_seconds", "Time from the arrival of a call's message to its answer.", ["method"]
        )
        self.stage_duration = seconds(
            "mixer_stage_duration_seconds",
            "Time in one stage: decode, queue and encode of a request, compute of a pass.",
            ["stage"],
        )
        self.stages = {stage: self.stage_duration.labels(stage) for stage in STAGES}
        """Of `stage_duration`; looking a label up takes longer than observing."""
        self.received_bytes = counter("mixer_received_bytes", "Bytes of messages received.", ["method"])
        self.sent_bytes = counter("mixer_sent_bytes", "Bytes of messages sent.", ["method"])
        self.images = counter("mixer_images", "Images mixed; mode is what was answered.", [*model, "mode"])
        self.batches = counter("mixer_batches", "Passes computed.", model)
        self.batch_size = histogram("mixer_batch_size_images", "Images in one pass.", buckets=_POWERS_OF_TWO)
        self.nonfinite_masks = counter("mixer_nonfinite_masks", "Masks that were infinite or not a number.", ["model"])
        self.lambda_error = histogram(
            "mixer_mask_lambda_error_ratio",
            "Distance of a mask's mean from its lambda, averaged over the images of a request.",
            ["model"],
            buckets=_RATIO_BUCKETS,
        )
        self.model_info = gauge("mixer_model_info", "A hosted mixer; always 1.", [*model, "sha256", "dtype", "device"])
        self.model_ready = gauge("mixer_model_ready", "Whether a mixer takes work.", ["model"])
        self.model_load_duration = gauge(
            "mixer_model_load_duration_seconds", "Time it took to read a mixer's file.", ["model"]
        )
        self.model_loads = counter(
            "mixer_model_loads", "Mixers that were put into service, or could not be.", ["model", "outcome"]
        )
        self.build_info = gauge("mixer_build_info", "Versions; always 1.", ["version", "grpcio", "torch"])

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Time the block as one stage, also when it fails."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.stages[stage].observe(time.perf_counter() - started_s)

    def watch_queue(self, batcher: Batcher, max_images: int) -> None:
        """Read the queue's length whenever the page is fetched; `max_images` is where it is full."""
        gauge = partial(Gauge, registry=self.registry)
        gauge("mixer_queue_limit_images", "Most images that may wait for a pass.").set(max_images)
        gauge("mixer_queue_requests", "Requests that wait for a pass.").set_function(lambda: batcher.num_requests)
        gauge("mixer_queue_images", "Images that wait for a pass.").set_function(lambda: batcher.num_images)
        gauge("mixer_queue_bytes", "Pixels that wait for a pass.").set_function(lambda: batcher.num_bytes)
        gauge("mixer_queue_clients", "Clients whose requests wait for a pass.").set_function(
            lambda: batcher.num_clients
        )

    def watch_memory(self, budget: MemoryBudget) -> None:
        """Read how much memory requests hold whenever the page is fetched."""
        gauge = partial(Gauge, registry=self.registry)
        held = gauge("mixer_request_memory_bytes", "Memory that requests hold, from their first byte to their answer.")
        held.set_function(lambda: budget.num_bytes)
        limit = gauge("mixer_request_memory_limit_bytes", "Most memory that requests may hold.")
        limit.set(budget.max_bytes)

    def watch_shared_memory(self, memory: SharedMemory) -> None:
        """Read what is leased whenever the page is fetched; for a server that leases any."""
        gauge = partial(Gauge, registry=self.registry)
        leases = gauge("mixer_shared_memory_leases", "Clients that hold shared memory.")
        leases.set_function(lambda: memory.num_leases)
        num_bytes = gauge("mixer_shared_memory_bytes", "Shared memory leased, or no longer leased and still read.")
        num_bytes.set_function(lambda: memory.num_bytes)

    def watch_mixer(self, mixer: FrozenMixer, is_ready: Callable[[], bool]) -> None:
        """Describe a hosted mixer, and start its counters at zero so that rates see the first step."""
        self.model_info.labels(mixer.name, mixer.version, mixer.sha256, "float32", mixer.device.type).set(1)
        self.model_ready.labels(mixer.name).set_function(is_ready)
        self.batches.labels(mixer.name, mixer.version)
        self.nonfinite_masks.labels(mixer.name)
        for method in ("Mix", "ModelInfer"):
            self.requests.labels(mixer.name, mixer.version, method, "OK")
        for mode in ("mask_logits", "images"):
            self.images.labels(mixer.name, mixer.version, mode)

    def keep_mixers(self, hosted: Collection[tuple[str, str]]) -> None:
        """Drop the series of mixers that are hosted no more: every reload would add some.

        Also those of mixers that were dropped before: an answer that was on its way then has made them anew.

        Args:
            hosted: names and versions.
        """
        versions = {*hosted, (UNKNOWN, UNKNOWN)}
        names = {name for name, _ in versions}
        for family in (self.requests, self.images, self.batches, self.model_info):
            _keep(family, lambda labels: (labels["model"], labels["version"]) in versions)
        for family in (
            self.nonfinite_masks,
            self.lambda_error,
            self.model_ready,
            self.model_load_duration,
            self.model_loads,
        ):
            _keep(family, lambda labels: labels["model"] in names)

    def describe_process(self) -> None:
        """Say what runs."""
        versions = [importlib.metadata.version(package) for package in ("samix-service", "grpcio")]
        self.build_info.labels(*versions, torch.__version__).set(1)


def _keep(family: MetricWrapperBase, is_kept: Callable[[Mapping[str, str]], bool]) -> None:
    samples = [sample.labels for metric in family.collect() for sample in metric.samples]
    for labels in samples:
        if not is_kept(labels):
            family.remove(*(value for name, value in labels.items() if name != "le"))  # of a histogram's bucket
