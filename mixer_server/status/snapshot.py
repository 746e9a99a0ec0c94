"""What the status page says, as plain data: travels as JSON, and that of several workers is put together."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from mixer_server.status.clients import Client
from mixer_server.status.problems import Problem
from services.metrics import SECONDS_BUCKETS


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerLine:
    """A version of a mixer that is hosted."""

    name: str
    version: str
    state: str
    encoder: str
    mode: str
    sides: str
    device: str


@dataclass(frozen=True, kw_only=True, slots=True)
class AbsentLine:
    """A mixer file that is not served."""

    name: str
    state: str
    file: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetLine:
    """A dataset that is streamed."""

    name: str
    num_samples: int
    num_shards: int
    subscriptions: int
    num_images: int
    num_skipped: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureLine:
    """A picture of the gallery."""

    key: str
    """Names it in its address; no two pictures of a server have the same."""
    mixer: str
    client: str
    lam: float
    """Share of its first image."""
    height: int
    width: int
    age_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What went through. Rates are over the last 10 seconds, sums over the last minute."""

    images_per_s: float = 0.0
    answers_per_s: float = 0.0
    refusals_per_s: float = 0.0
    received_bytes_per_s: float = 0.0
    sent_bytes_per_s: float = 0.0
    history: list[float] = field(default_factory=list)
    """Images mixed each second, in periods of five seconds up to now, oldest first; at most five minutes."""
    latency: list[float] = field(default_factory=list)
    """Answers, by the bucket of `SECONDS_BUCKETS` their duration lies in; one more for those beyond."""
    stages: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Of each stage: seconds spent in it, and how often."""
    passes: float = 0.0
    pass_images: float = 0.0
    lately_s: float = 0.0
    """How long the last minute was: less in the first one."""
    dataset_images_per_s: Mapping[str, float] = field(default_factory=dict)

    def latency_s(self, share: float) -> float | None:
        """Estimate within how many seconds that share of the answers came, as Prometheus would; None without any."""
        total, below = sum(self.latency), 0.0
        if not total:
            return None
        lower = 0.0
        for count, upper in zip(self.latency, (*SECONDS_BUCKETS, SECONDS_BUCKETS[-1]), strict=True):
            if below + count >= share * total:
                return lower + (upper - lower) * (share * total - below) / count if count else lower
            below, lower = below + count, upper
        return lower


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Everything the page shows of one server."""

    version: str
    """Of the package."""
    state: str
    """`ready`, or why it is not."""
    uptime_s: float
    traffic: Traffic
    queue_requests: int
    queue_images: int
    queue_limit: int
    queue_clients: int
    in_flight: int
    streams: int
    memory_bytes: int
    memory_limit_bytes: int
    has_gallery: bool
    """Whether pictures are shown at all."""
    mixers: list[MixerLine]
    absent: list[AbsentLine]
    clients: list[Client]
    problems: list[Problem]
    datasets: list[DatasetLine]
    pictures: list[PictureLine]


def encode_status(status: Status) -> str:
    """Write JSON."""
    return json.dumps(dataclasses.asdict(status))


def decode_status(text: str) -> Status:
    """Read what `encode_status` wrote, for a server of the same version.

    Raises:
        ValueError, TypeError, KeyError: if it is something else.
    """
    values: dict[str, Any] = json.loads(text)
    lines = {
        "mixers": MixerLine,
        "absent": AbsentLine,
        "clients": Client,
        "problems": Problem,
        "datasets": DatasetLine,
        "pictures": PictureLine,
    }
    parts: dict[str, Any] = {name: [line(**entry) for entry in values[name]] for name, line in lines.items()}
    parts["traffic"] = Traffic(**values["traffic"])
    return Status(**values | parts)


def merge(statuses: Mapping[int, Status], state: str) -> Status:
    """Put workers together, which host the same.

    Args:
        statuses: of each worker that answers, by its number; at least one.
        state: of all, also of those that do not answer.
    """
    first = next(iter(statuses.values()))
    all_of = list(statuses.values())

    def total(name: str) -> int:
        return sum(getattr(status, name) for status in all_of)

    return dataclasses.replace(
        first,
        state=state,
        uptime_s=max(status.uptime_s for status in all_of),
        traffic=_merge_traffic([status.traffic for status in all_of]),
        **{name: total(name) for name in _SUMMED},
        clients=_merge_clients(all_of),
        problems=sorted(
            (
                dataclasses.replace(problem, source=f"worker {index}: {problem.source}")
                for index, status in statuses.items()
                for problem in status.problems
            ),
            key=lambda problem: problem.last_s,
        ),
        pictures=sorted(
            (
                dataclasses.replace(picture, key=f"{index}-{picture.key}")
                for index, status in statuses.items()
                for picture in status.pictures
            ),
            key=lambda picture: picture.age_s,
        ),
    )


_SUMMED = (
    "queue_requests",
    "queue_images",
    "queue_limit",
    "queue_clients",
    "in_flight",
    "streams",
    "memory_bytes",
    "memory_limit_bytes",
)


def _merge_traffic(parts: Sequence[Traffic]) -> Traffic:
    def total(name: str) -> float:
        return sum(getattr(part, name) for part in parts)

    def columns(name: str) -> list[float]:
        return [sum(column) for column in zip_longest(*(getattr(part, name) for part in parts), fillvalue=0.0)]

    reversed_histories = zip_longest(*(reversed(part.history) for part in parts), fillvalue=0.0)  # they end now
    return Traffic(
        **{name: total(name) for name in ("images_per_s", "answers_per_s", "refusals_per_s", "passes", "pass_images")},
        **{name: total(name) for name in ("received_bytes_per_s", "sent_bytes_per_s", "lately_s")},
        history=[sum(column) for column in reversed_histories][::-1],
        latency=columns("latency"),
        stages={
            stage: [sum(column) for column in zip(*(part.stages[stage] for part in parts), strict=True)]
            for stage in parts[0].stages
        },
        dataset_images_per_s=parts[0].dataset_images_per_s,  # datasets are streamed by one process
    )


def _merge_clients(statuses: Sequence[Status]) -> list[Client]:
    merged: dict[str, Client] = {}
    for client in (client for status in statuses for client in status.clients):
        other = merged.get(client.name)
        merged[client.name] = client if other is None else _sum_of(client, other)
    return sorted(merged.values(), key=lambda client: -client.images_per_s)


def _sum_of(one: Client, other: Client) -> Client:
    return Client(
        name=one.name,
        images_per_s=one.images_per_s + other.images_per_s,
        num_images=one.num_images + other.num_images,
        seen_s=min(one.seen_s, other.seen_s),
    )
