"""Whether a batch is lost, answered twice or answered wrongly when replicas are killed while they work.

Each batch carries its key in its pixels: pairs of images of one grey, which stay as they are however they are mixed. So
an answer says itself which batch it belongs to. Other images are noise, whose mix is compared with that of a mixer in
this process.
"""

import itertools
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.endurance_crowd import Crowd
from benchmarks.endurance_report import Check, PartReport
from benchmarks.endurance_servers import Replica, artefact_of
from benchmarks.machine import Cores
from samix.client.config import ClientConfig
from samix.client.pending import PendingMix
from samix.client.remote import connect
from samix.client.retrying import RetryReason, SilentObserver
from samix.errors import ConfigError, MixerError
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.plan import generator_for
from samix.mixing.presets import tiny_spec

SIDE = 32
KEY_BYTES = 4
"""Of a key: the first is the client's number, the others count its batches."""
_NUM_KEY_IMAGES = 2 * KEY_BYTES
_TOLERANCE = 2.5 / 255
"""Of mixed values in 0..1: masks agree within 1e-3, and answers are rounded to uint8."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KillsConfig:
    """Two replicas that are killed by turns."""

    seconds: float = 120.0
    """How long batches are asked for, in seconds."""
    clients: int = 4
    """Clients."""
    depth: int = 4
    """Batches that each has under way."""
    pause_s: float = 5.0
    """From the return of a replica to the next kill, in seconds: a client finds it again within two."""
    deadline_s: float = 30.0
    """Longest a batch may take, retries included, in seconds."""

    def __post_init__(self) -> None:
        if not (1 <= self.clients <= 64 and 1 <= self.depth <= 64):
            raise ConfigError(f"kills.clients and kills.depth must lie in 1..64, got {self.clients} and {self.depth}")
        for name in ("seconds", "pause_s", "deadline_s"):
            if not 0 < getattr(self, name) <= 7200:
                raise ConfigError(
                    f"kills.{name.replace('_', '-')} must be above 0 and at most 7200, got {getattr(self, name)}"
                )


def run_kills(config: KillsConfig, cores: Cores, log: Path) -> PartReport:
    """Ask two replicas for batches, kill one after the other, and count what came back."""
    mixer = random_mixer(tiny_spec(), seed=0, name="random-r10")
    ledger = Ledger(mixer)
    with ExitStack() as opened:
        artefact = opened.enter_context(artefact_of(mixer))
        replicas = [Replica(artefact, cores.server, log.with_stem(f"{log.stem}-{name}")) for name in "ab"]
        for replica in replicas:
            opened.callback(replica.close)
            replica.start()
        target = ",".join(replica.target for replica in replicas)
        with Crowd(config.clients, partial(_ask, config, target, ledger)) as crowd:
            _kill_by_turns(config, replicas, crowd, ledger)
    kills = sum(replica.num_kills for replica in replicas)
    details = {"settings": asdict(config), "kills": kills, **ledger.details()}
    return PartReport(name="kills", checks=[*ledger.checks(), _at_least("kills", kills, 2)], details=details)


class Ledger:
    """What became of each batch, by its key. Safe for threads; also hears of retries and hedges."""

    def __init__(self, mixer: FrozenMixer) -> None:
        self.observer = CountingObserver()
        """For the clients."""
        self._mixer = mixer
        self._lock = threading.Lock()
        self._asked: set[bytes] = set()
        self._answers: Counter[bytes] = Counter()
        self._num_wrong = 0
        self._failures: Counter[str] = Counter()

    def asked(self, key: bytes) -> None:
        """Note that a batch was asked for."""
        with self._lock:
            self._asked.add(key)

    def answered(self, images: Tensor, plan: MixPlan, mixed: MixedBatch) -> None:
        """Note an answer under the key that it carries itself, and whether it is right for that batch."""
        key = read_key(mixed.images)
        expected = self._mixer.mix(images, lam=plan.lam, partner=plan.partner).images
        is_right = key == read_key(images / 255) and bool((mixed.images - expected).abs().max() <= _TOLERANCE)
        with self._lock:
            self._answers[key] += 1
            self._num_wrong += not is_right

    def failed(self, error: Exception) -> None:
        """Note that a batch was not answered, and why."""
        with self._lock:
            self._failures[f"{type(error).__name__}: {error}"] += 1

    @property
    def num_answered(self) -> int:
        """Batches that were answered."""
        return len(self._answers)

    @property
    def num_lost(self) -> int:
        """Batches that were asked for and not answered; while some are under way these count too."""
        return len(self._asked - self._answers.keys())

    def checks(self) -> list[Check]:
        """Compare with what was promised."""
        twice = sum(count - 1 for count in self._answers.values())
        return [
            Check(figure="batches lost", value=self.num_lost, bound="at most", limit=0),
            Check(figure="batches answered twice", value=twice, bound="at most", limit=0),
            Check(figure="batches answered wrongly", value=self._num_wrong, bound="at most", limit=0),
            _at_least("batches that were sent again", self.observer.retries.total(), 1),
        ]

    def details(self) -> dict[str, object]:
        """List what else was seen."""
        observer = self.observer
        return {
            "batches": len(self._asked),
            "retries": dict(observer.retries),
            "hedges": observer.num_hedges,
            "failures": dict(self._failures),
        }


class CountingObserver(SilentObserver):
    """Counts retries and hedges of all clients together."""

    def __init__(self) -> None:
        self.retries: Counter[RetryReason] = Counter()
        """By reason."""
        self.num_hedges = 0
        """Batches that were sent to a second replica."""
        self._lock = threading.Lock()

    def retried(self, reason: RetryReason) -> None:
        """Count a retry."""
        with self._lock:
            self.retries[reason] += 1

    def hedged(self) -> None:
        """Count a hedge."""
        with self._lock:
            self.num_hedges += 1


def make_batch(key: bytes) -> tuple[Tensor, MixPlan]:
    """Make a batch that carries its key: uint8 [4 * KEY_BYTES, 3, SIDE, SIDE], the first half pairs of one grey."""
    generator = generator_for("kills", key.hex())
    greys = torch.tensor(list(key), dtype=torch.uint8).repeat_interleave(2)
    flat = greys.view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE)
    noise = torch.randint(0, 256, flat.shape, dtype=torch.uint8, generator=generator)
    images = torch.cat([flat, noise])
    partner = torch.arange(len(images)).view(-1, 2).flip(1).flatten()
    return images, MixPlan(lam=torch.rand(len(images), generator=generator), partner=partner)


def read_key(images: Tensor) -> bytes:
    """Read the key from mixed images in 0..1; images that are not of one grey give a key that nobody asked for."""
    flat = images[:_NUM_KEY_IMAGES].mul(255).round().flatten(1)
    if not (flat == flat[:, :1]).all() or not torch.equal(flat[::2], flat[1::2]):
        return b""
    return bytes(flat[::2, 0].byte().tolist())


def _ask(config: KillsConfig, target: str, ledger: Ledger, number: int, stopping: threading.Event) -> None:
    settings = ClientConfig(name=f"client-{number}", deadline_s=config.deadline_s)
    with connect(target, reply="images", config=settings, observer=ledger.observer) as mixer:
        pending: deque[tuple[Tensor, MixPlan, PendingMix]] = deque()
        for index in itertools.takewhile(lambda _: not stopping.is_set(), itertools.count()):
            key = bytes([number]) + index.to_bytes(KEY_BYTES - 1)
            images, plan = make_batch(key)
            ledger.asked(key)
            pending.append((images, plan, mixer.submit(images, plan=plan)))
            if len(pending) == config.depth:
                _collect(ledger, *pending.popleft())
        for asked in pending:
            _collect(ledger, *asked)


def _collect(ledger: Ledger, images: Tensor, plan: MixPlan, pending: PendingMix) -> None:
    try:
        mixed = pending.result()
    except MixerError as error:
        ledger.failed(error)
        return
    ledger.answered(images, plan, mixed)


def _kill_by_turns(config: KillsConfig, replicas: Sequence[Replica], crowd: Crowd, ledger: Ledger) -> None:
    ends_s = time.monotonic() + config.seconds
    for replica in itertools.cycle(replicas):
        if crowd.wait(min(config.pause_s, max(0.0, ends_s - time.monotonic()))) or time.monotonic() >= ends_s:
            return
        replica.kill()
        crowd.wait(config.pause_s / 5)
        replica.start()
        print(
            f"    {config.seconds - (ends_s - time.monotonic()):5.0f} s  {ledger.num_answered} batches answered, "
            f"{ledger.observer.retries.total()} sent again, {sum(r.num_kills for r in replicas)} kills",
            flush=True,
        )


def _at_least(figure: str, value: float, limit: float) -> Check:
    return Check(figure=figure, value=value, bound="at least", limit=limit)
