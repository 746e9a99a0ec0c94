"""Everything the mixer server counts and times, as Prometheus families.

Labels are closed sets: a model is one of the hosted ones, or `unknown` where a request did not name one.
"""

import importlib.metadata
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from samix.mixing.frozen import FrozenMixer
from services.metrics import SECONDS_BUCKETS

UNKNOWN_MODEL = "unknown"
STAGES = ("decode", "queue", "compute", "encode")

_RATIO_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class MixerMetrics:
    """The families; whoever does the work counts it. Attributes are Prometheus objects of the same name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "mixer_requests", "Calls answered, by gRPC status code.", ["model", "method", "code"], registry=registry
        )
        self.requests_in_flight = Gauge("mixer_requests_in_flight", "Calls being answered.", registry=registry)
        self.request_duration = Histogram(
            "mixer_request_duration_seconds",
            "Time from the arrival of a call's message to its answer.",
            ["method"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.stage_duration = Histogram(
            "mixer_stage_duration_seconds",
            "Time in one stage: decode, queue and encode of a request, compute of a pass.",
            ["stage"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.received_bytes = Counter(
            "mixer_received_bytes", "Bytes of messages received.", ["method"], registry=registry
        )
        self.sent_bytes = Counter("mixer_sent_bytes", "Bytes of messages sent.", ["method"], registry=registry)
        self.images = Counter(
            "mixer_images",
            "Images mixed, by what was answered: mask_logits or images.",
            ["model", "version", "mode"],
            registry=registry,
        )
        self.batches = Counter("mixer_batches", "Passes computed.", ["model", "version"], registry=registry)
        self.batch_size = Histogram(
            "mixer_batch_size_images",
            "Images in one pass.",
            buckets=[2**power for power in range(10)],
            registry=registry,
        )
        self.nonfinite_masks = Counter(
            "mixer_nonfinite_masks", "Masks that were infinite or not a number.", ["model"], registry=registry
        )
        self.lambda_error = Histogram(
            "mixer_mask_lambda_error_ratio",
            "Distance of a mask's mean from its lambda, averaged over the images of a request.",
            ["model"],
            buckets=_RATIO_BUCKETS,
            registry=registry,
        )
        self.model_info = Gauge(
            "mixer_model_info",
            "A hosted mixer; always 1.",
            ["model", "version", "sha256", "dtype", "device"],
            registry=registry,
        )
        self.model_ready = Gauge("mixer_model_ready", "Whether a mixer takes work.", ["model"], registry=registry)
        for stage in STAGES:
            self.stage_duration.labels(stage)
        self._describe_build()

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Time the block as one stage, also when it fails."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self.stage_duration.labels(stage).observe(time.perf_counter() - started_s)

    def watch_queue(self, num_requests: Callable[[], int], num_images: Callable[[], int]) -> None:
        """Read the queue's length whenever the page is fetched."""
        requests = Gauge("mixer_queue_requests", "Requests that wait for a pass.", registry=self.registry)
        images = Gauge("mixer_queue_images", "Images that wait for a pass.", registry=self.registry)
        requests.set_function(num_requests)
        images.set_function(num_images)

    def watch_mixer(self, mixer: FrozenMixer, is_ready: Callable[[], bool]) -> None:
        """Describe a hosted mixer, and start its counters at zero so that rates see the first step."""
        self.model_info.labels(mixer.name, mixer.version, mixer.sha256, "float32", mixer.device.type).set(1)
        self.model_ready.labels(mixer.name).set_function(is_ready)
        self.batches.labels(mixer.name, mixer.version)
        self.nonfinite_masks.labels(mixer.name)
        self.requests.labels(mixer.name, "Mix", "OK")
        for mode in ("mask_logits", "images"):
            self.images.labels(mixer.name, mixer.version, mode)

    def _describe_build(self) -> None:
        versions = [importlib.metadata.version(package) for package in ("samix-service", "grpcio")]
        build = Gauge("mixer_build_info", "Versions; always 1.", ["version", "grpcio", "torch"], registry=self.registry)
        build.labels(*versions, torch.__version__).set(1)
