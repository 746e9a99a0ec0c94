"""Metrics pages of several workers as one, each series with the number of its worker."""

import logging
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from services.metrics import make_registry

log = logging.getLogger(__name__)

WORKER = "worker"
"""The label."""


class WorkerMetrics(Collector):
    """What all workers count, beside what their parent does; read anew for each page."""

    def __init__(self, num_workers: int, fetch: Callable[[], Mapping[int, str]]) -> None:
        """Describe the workers.

        Args:
            num_workers: how many there should be.
            fetch: reads their metrics pages; a worker that does not answer is left out.
        """
        own = make_registry()
        self._own = own
        self._fetch = fetch
        self._up = Gauge("mixer_workers_up", "Worker processes that answered for this page.", registry=own)
        Gauge("mixer_workers", "Worker processes that share the port.", registry=own).set(num_workers)
        self.restarts = Counter(
            "mixer_worker_restarts", "Worker processes started again after they ended.", [WORKER], registry=own
        )
        for index in range(num_workers):
            self.restarts.labels(index)

    @property
    def registry(self) -> CollectorRegistry:
        """What to make a page of."""
        # Of nothing but this: processes, ours and theirs, have families of the same names, which belong together.
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def describe(self) -> Iterable[Metric]:
        """Name no family in advance, as that would fetch all pages."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Fetch and merge all pages."""
        pages = {}
        for index, text in self._fetch().items():
            try:
                pages[index] = list(text_string_to_metric_families(text))
            except ValueError as error:
                log.warning("worker_page_unreadable", extra={"worker": index, "reason": str(error)})
        self._up.set(len(pages))
        return merge(self._own.collect(), pages)


def merge(own: Iterable[Metric], pages: Mapping[int, Iterable[Metric]]) -> list[Metric]:
    """Put families of one name together.

    Args:
        own: families whose series stay as they are.
        pages: families of each worker, whose series get its number as a label.

    Returns:
        One family per name, as the first that has it describes it.
    """
    merged: dict[str, Metric] = {}
    for family in own:
        _into(merged, family, {})
    for index, families in pages.items():
        for family in families:
            _into(merged, family, {WORKER: str(index)})
    return list(merged.values())


def _into(merged: dict[str, Metric], family: Metric, labels: Mapping[str, str]) -> None:
    if family.name not in merged:
        merged[family.name] = Metric(family.name, family.documentation, family.type)
    for sample in family.samples:
        merged[family.name].add_sample(sample.name, {**sample.labels, **labels}, sample.value, sample.timestamp)
