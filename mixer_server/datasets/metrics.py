"""What the datasets of a server count and time, as Prometheus families; the label is a dataset's name."""

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.metrics import SECONDS_BUCKETS

WAITS = ("batch", "credit")


class DatasetMetrics:
    """The families; whoever does the work counts it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        dataset = ["dataset"]
        self.subscriptions_open = gauge("mixer_dataset_subscriptions_open", "Subscriptions that are open.", dataset)
        self.batches = counter("mixer_dataset_batches", "Batches sent.", dataset)
        self.images = counter("mixer_dataset_images", "Images sent.", dataset)
        self.sent_bytes = counter("mixer_dataset_sent_bytes", "Bytes of messages sent.", dataset)
        self.skipped = counter(
            "mixer_dataset_skipped_samples",
            "Samples left out because they could not be read, each once in an epoch.",
            dataset,
        )
        self.decoder_restarts = counter("mixer_dataset_decoder_restarts", "Decoding processes replaced.", dataset)
        self.wait = Histogram(
            "mixer_dataset_wait_seconds",
            "Time from one batch sent to the next: until it was made (batch: processes or mixer are slow), and from "
            "there until its consumer gave a credit (credit: the consumer is).",
            [*dataset, "reason"],
            registry=registry,
            buckets=SECONDS_BUCKETS,
        )
        self._decode_queue = gauge("mixer_dataset_decode_queue_parts", "Parts of batches that wait.", dataset)
        self._memory = gauge("mixer_dataset_memory_bytes", "Memory of decoded pictures, of all datasets.")

    def watch_dataset(self, name: str, num_waiting: Callable[[], int]) -> None:
        """Start a dataset's series at zero, so that rates see the first step."""
        for family in (self.subscriptions_open, self.batches, self.images, self.sent_bytes, self.skipped):
            family.labels(name)
        self.decoder_restarts.labels(name)
        for reason in WAITS:
            self.wait.labels(name, reason)
        self._decode_queue.labels(name).set_function(num_waiting)

    def watch_memory(self, num_bytes: Callable[[], int]) -> None:
        """Read how much memory decoded pictures hold whenever the page is fetched."""
        self._memory.set_function(num_bytes)
