"""Everything that the status page of one server says, gathered from where it happens."""

import functools
import importlib.metadata
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from mixer_server.datasets.datasets import Datasets
from mixer_server.engine.answers import Outcome
from mixer_server.front.readiness import Readiness
from mixer_server.hosting.registry import Registry
from mixer_server.hosting.repository import Entry
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.budget import MemoryBudget
from mixer_server.scheduling.job import Job
from mixer_server.status.clients import Clients
from mixer_server.status.gallery import Gallery
from mixer_server.status.history import History, Reading, by_dataset, read_metrics, value_of
from mixer_server.status.problems import ProblemHandler
from mixer_server.status.snapshot import AbsentLine, DatasetLine, MixerLine, Status
from samix.mixing.frozen import FrozenMixer

_FRESH_S = 0.5
"""How long a status serves all who ask: many browsers cost no more than one."""


class StatusBoard:
    """Knows what goes on in a server. `start`, then `close`; safe for threads."""

    def __init__(
        self,
        *,
        registry: Registry,
        readiness: Readiness,
        metrics: MixerMetrics,
        batcher: Batcher,
        max_queue_images: int,
        has_gallery: bool = False,
        list_entries: Callable[[], Sequence[Entry]] = list,
    ) -> None:
        """Watch a server.

        Args:
            registry: what it hosts.
            readiness: whether that takes work.
            metrics: its counters.
            batcher: its queue.
            max_queue_images: most images that wait.
            has_gallery: whether pictures of its clients may be kept and shown.
            list_entries: lists the mixer files that it knows.
        """
        self._registry = registry
        self._readiness = readiness
        self._metrics = metrics
        self._batcher = batcher
        self._max_queue_images = max_queue_images
        self._list_entries = list_entries
        self._clients = Clients()
        self._gallery = Gallery() if has_gallery else None
        self._budget: MemoryBudget | None = None
        self._datasets: Datasets | None = None
        self._history = History(self._read)
        self._handler = ProblemHandler(metrics.problems)
        self._started_s = time.monotonic()
        self._lock = threading.Lock()
        self._status: Status | None = None
        self._made_s = 0.0

    def start(self, budget: MemoryBudget, datasets: Datasets) -> None:
        """Begin to watch; also the log of this process.

        Args:
            budget: memory of requests.
            datasets: what is streamed.
        """
        self._budget, self._datasets = budget, datasets
        self._history.start()
        logging.getLogger().addHandler(self._handler)

    def close(self) -> None:
        """Watch no more."""
        logging.getLogger().removeHandler(self._handler)
        self._history.close()

    def note_answer(self, job: Job, outcome: Outcome) -> None:
        """Note what is about to be answered; for the engine."""
        self._clients.note(job.client, job.num_images)
        if self._gallery is not None:
            self._gallery.note(job, outcome)

    def jpeg(self, key: str) -> bytes | None:
        """Find a picture of the gallery; None if there is none of that key."""
        return self._gallery.jpeg(key) if self._gallery is not None else None

    def status(self) -> Status:
        """Say what goes on; up to half a second old."""
        with self._lock:
            if self._status is None or time.monotonic() - self._made_s >= _FRESH_S:
                self._status, self._made_s = self._make(), time.monotonic()
            return self._status

    def _read(self, at_s: float) -> Reading:
        return read_metrics(self._metrics, self._datasets.metrics if self._datasets is not None else None, at_s)

    def _make(self) -> Status:
        batcher, metrics, budget = self._batcher, self._metrics, self._budget
        return Status(
            version=_version(),
            state=self._readiness.obstacle or "ready",
            uptime_s=time.monotonic() - self._started_s,
            traffic=self._history.traffic(),
            queue_requests=batcher.num_requests,
            queue_images=batcher.num_images,
            queue_limit=self._max_queue_images,
            queue_clients=batcher.num_clients,
            in_flight=int(value_of(metrics.requests_in_flight)),
            streams=int(value_of(metrics.streams_open)),
            memory_bytes=budget.num_bytes if budget is not None else 0,
            memory_limit_bytes=budget.max_bytes if budget is not None else 0,
            has_gallery=self._gallery is not None,
            mixers=[self._describe(mixer) for mixer in self._registry.mixers],
            absent=[
                AbsentLine(name=entry.name, state=entry.state, file=entry.file, reason=entry.reason)
                for entry in self._list_entries()
                if not any(mixer.version == entry.version for mixer in self._registry.versions(entry.name))
            ],
            clients=self._clients.list(),
            problems=metrics.problems.recent(),
            datasets=self._describe_datasets(),
            pictures=self._gallery.list() if self._gallery is not None else [],
        )

    def _describe(self, mixer: FrozenMixer) -> MixerLine:
        spec = mixer.spec
        is_ready = self._readiness.is_ready(mixer.name, mixer.version)
        is_newest = mixer in self._registry.versions(mixer.name)[:1]
        return MixerLine(
            name=mixer.name,
            version=mixer.version,
            state=("ready" if is_newest else "ready, for requests that name it") if is_ready else "not ready",
            encoder=f"{spec.backbone.name}, stage {spec.stage}",
            mode=spec.mode,
            sides=f"{spec.min_side} to {spec.max_side} px, trained for {spec.image_size}",
            device=mixer.device.type,
        )

    def _describe_datasets(self) -> list[DatasetLine]:
        if self._datasets is None:
            return []
        metrics = self._datasets.metrics
        count = partial(by_dataset, suffix="_total")
        open_now, images, skipped = (
            by_dataset(metrics.subscriptions_open),
            count(metrics.images),
            count(metrics.skipped),
        )
        return [
            DatasetLine(
                name=info.name,
                num_samples=info.num_samples,
                num_shards=info.num_shards,
                subscriptions=int(open_now.get(info.name, 0)),
                num_images=int(images.get(info.name, 0)),
                num_skipped=int(skipped.get(info.name, 0)),
            )
            for info in self._datasets.describe()
        ]


@functools.cache  # a page that is looked at asks twice a second, and the answer lies on the disk
def _version() -> str:
    return importlib.metadata.version("samix-service")
