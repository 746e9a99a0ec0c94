"""Whether a server keeps its memory when far more is posted at once than fits, and still serves everybody."""

import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.endurance_crowd import Crowd
from benchmarks.endurance_posts import Post, PostingClient, StreamClient, UnaryClient
from benchmarks.endurance_report import Check, PartReport
from benchmarks.endurance_servers import Running, Usage, artefact_of, running_server
from benchmarks.machine import Cores
from samix.errors import ConfigError, MixerOverloaded, MixerTimeout
from samix.mixing.backbone import BackboneSpec
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import IMAGENET_MEAN, IMAGENET_STD, samix_spec
from samix.wire import MixCall

Way = Literal["stream", "unary"]

_LIMIT = 1.2
"""Resident memory as a share of what is configured."""
_MANY = 100
"""Clients of which some must be refused, or nothing was shown."""
_CLIENTS: dict[Way, type[PostingClient]] = {"stream": StreamClient, "unary": UnaryClient}
_CONNECT_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PressureConfig:
    """Clients that post the largest batches, all at once."""

    clients: int = 200
    """Clients, each with a connection of its own."""
    ways: tuple[Way, ...] = ("stream", "unary")
    """How they post: by MixStream, or by Mix; one after the other, to a fresh server each."""
    memory_mib: int = 1536
    """Resident memory that the server is told to keep, in MiB."""
    batch_size: int = 256
    """Images of a batch; a server takes 256 by default."""
    side: int = 224
    """Side of the images, in pixels."""
    patience_s: float = 1800.0
    """How long clients come again before they count as not served, in seconds."""

    def __post_init__(self) -> None:
        if not (1 <= self.clients <= 1000 and 1 <= self.batch_size <= 256 and 32 <= self.side <= 224):
            raise ConfigError(
                "pressure.clients must lie in 1..1000, pressure.batch-size in 1..256 and pressure.side in 32..224, "
                f"got {self.clients}, {self.batch_size} and {self.side}"
            )
        if not 0 < self.patience_s <= 7200:
            raise ConfigError(f"pressure.patience-s must be above 0 and at most 7200, got {self.patience_s}")


def run_pressure(config: PressureConfig, cores: Cores, log: Path) -> PartReport:
    """Post by each way, to a fresh server each time, and read how much memory it had at most."""
    checks: list[Check] = []
    details: dict[str, Any] = {"settings": asdict(config)}
    flags = {"memory-mib": config.memory_mib, "warm-up-sides": config.side}
    with artefact_of(_mixer()) as artefact:
        for way in config.ways:
            with running_server(artefact, cores.server, log.with_stem(f"{log.stem}-{way}"), flags) as server:
                crush = _Crush(config, way, server)
                usage = crush.run()
            checks += crush.checks(usage)
            details[way] = crush.details(usage)
    return PartReport(name="pressure", checks=checks, details=details)


class _Crush:
    """All clients, posting to one server by one way."""

    def __init__(self, config: PressureConfig, way: Way, server: Running) -> None:
        self._config = config
        self._way: Way = way
        self._server = server
        self._starting = threading.Barrier(config.clients)
        self._began_s = time.monotonic()
        self._served_s: list[float] = []
        self._refusals: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def run(self) -> Usage:
        """Post until everybody is served, or patience ends; returns what the server has then."""
        config = self._config
        print(f"    {config.clients} clients by {self._way}; the server starts with {self._server.usage()}", flush=True)
        post = _post(config.batch_size, config.side)
        with Crowd(config.clients, partial(self._keep_posting, post)) as crowd:
            crowd.wait(config.patience_s, report=self._report)
        self._report(time.monotonic() - self._began_s)
        return self._server.usage()

    def checks(self, usage: Usage) -> list[Check]:
        """Compare with what was promised."""
        way, config = self._way, self._config
        limit_mib, least = round(_LIMIT * config.memory_mib, 1), int(config.clients >= _MANY)
        unserved, refused, failed = config.clients - len(self._served_s), self._refusals.total(), self._failures.total()
        return [
            _at_most(f"{way}: peak of resident memory", round(usage.peak_mib, 1), limit_mib, " MiB"),
            _at_most(f"{way}: clients that were not served", unserved, 0),
            _at_most(f"{way}: refusals without a hint, and other failures", failed, 0),
            Check(figure=f"{way}: refusals with a hint", value=refused, bound="at least", limit=least),
        ]

    def details(self, usage: Usage) -> dict[str, Any]:
        """List what else was seen."""
        return {
            "usage_at_end": asdict(usage),
            "last_served_s": round(max(self._served_s, default=0.0), 1),
            "refusals": dict(self._refusals),
            "failures": dict(self._failures),
        }

    def _keep_posting(self, post: Post, number: int, stopping: threading.Event) -> None:
        deadline_s = self._began_s + self._config.patience_s
        with _CLIENTS[self._way](self._server.target, post, f"client-{number}") as client:
            self._starting.wait(_CONNECT_S)
            while not stopping.is_set() and (remaining_s := deadline_s - time.monotonic()) > 0:
                outcome = client.send(remaining_s)
                if outcome is None:
                    self._served_s.append(time.monotonic() - self._began_s)
                    return
                if isinstance(outcome, MixerTimeout) and time.monotonic() >= deadline_s:
                    return  # our own patience has ended
                if not isinstance(outcome, MixerOverloaded):
                    self._failures[f"{type(outcome).__name__}: {outcome}"] += 1
                    return
                self._refusals[_reason(outcome)] += 1
                stopping.wait(outcome.retry_after_s)

    def _report(self, passed_s: float) -> None:
        usage = self._server.usage()
        print(
            f"    {passed_s:5.0f} s  {len(self._served_s)} served, {self._refusals.total()} refused, "
            f"{self._failures.total()} failed; {usage}, {usage.peak_mib:,.0f} at most",
            flush=True,
        )


def _mixer() -> FrozenMixer:
    """Make a mixer of ImageNet's geometry that is as cheap as it gets."""
    backbone = BackboneSpec(name="resnet18", layers=(1, 1, 1, 1), channels=(8, 16, 32, 64))
    spec = samix_spec(backbone, mean=IMAGENET_MEAN, std=IMAGENET_STD, image_size=224)
    return random_mixer(spec, seed=0, name="random-r10")


def _post(batch_size: int, side: int) -> Post:
    rng = np.random.default_rng(0)
    return Post(
        MixCall(
            mixer="",
            pixels=rng.integers(0, 256, (batch_size, 3, side, side), np.uint8),
            lam=rng.uniform(0.1, 0.9, batch_size).astype(np.float32),
            partner=rng.permutation(batch_size),
        )
    )


def _at_most(figure: str, value: float, limit: float, unit: str = "") -> Check:
    return Check(figure=figure, value=value, bound="at most", limit=limit, unit=unit)


def _reason(error: MixerOverloaded) -> str:
    """Say what was full, without numbers."""
    sentence = str(error).partition(": ")[2]
    return "".join(letter for letter in sentence if not letter.isdigit()).partition(":")[0]
