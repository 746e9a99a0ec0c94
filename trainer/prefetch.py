"""Mixed batches for an epoch, made beside the training step where the mixer is elsewhere.

    loader --> send ... depth batches under way ... --> receive --> step
                                                   \\--> fallback, counted, where no answer came

However the mixer behaves, one batch in gives exactly one batch out: a rank that skipped a step alone would leave the
others hanging in their all-reduce.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from samix.client.config import Exchange
from samix.client.pending import PendingMix
from samix.client.remote import RemoteMixer
from samix.errors import BadBatch, MixerError, MixerNotFound, MixerTimeout
from samix.mixing.batch import MixedBatch, MixPlan
from samix.mixing.plan import derive_seed, draw_plan, generator_for
from samix.mixing.protocol import Mixer
from services.shards.dataset import Batch
from trainer.exchanges import Trial
from trainer.fallback import Breaker, FailureBudget
from trainer.metrics import TrainerMetrics

log = logging.getLogger(__name__)


Item = TypeVar("Item", covariant=True)


class BatchMixing(Protocol[Item]):
    """Makes what a method takes of the batches of this rank."""

    def epoch(self, epoch: int, batches: Iterable[Batch], *, first_batch: int = 0) -> Iterator[Item]:
        """Prepare batches of an epoch, in order, for the device of this rank.

        Args:
            epoch: its number.
            batches: of this rank.
            first_batch: number of the first of them in its epoch; a run that is resumed in mid-epoch thus draws the
                plans it would have drawn.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A batch that a policy mixed."""

    clean: Tensor
    """uint8 [B, 3, H, W], the images before mixing, where the loader or the policy left them."""
    mixed: MixedBatch
    """On the device of this rank."""

    def __len__(self) -> int:
        return len(self.clean)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSeed:
    """Where the plans of a rank come from: (run seed, epoch, step, rank) decide everything that is drawn."""

    run_seed: int
    """Of the run."""
    rank: int
    """Of this process: its batches are mixed in themselves."""
    alpha: float
    """Of the Beta distribution of lam."""
    per_sample: bool
    """One lam for each image instead of one for the batch."""
    lam_of_draw: Callable[[Tensor], Tensor] = lambda draw: draw
    """What a policy makes of the draws, float32 [B]; ResizeMix keeps lam within its scope."""

    def seed(self, epoch: int, step: int) -> int:
        """Seed of whatever one batch draws beyond its plan."""
        return derive_seed(self.run_seed, epoch, step, self.rank)

    def plan(self, epoch: int, step: int, batch_size: int) -> MixPlan:
        """Draw the plan of one batch."""
        generator = generator_for(self.run_seed, epoch, step, self.rank)
        plan = draw_plan(batch_size, alpha=self.alpha, generator=generator, per_sample=self.per_sample)
        return replace(plan, lam=self.lam_of_draw(plan.lam))


class InProcessMixing:
    """Mixes each batch when it is asked for, in this process."""

    def __init__(self, mixer: Mixer, plans: PlanSeed, device: torch.device, metrics: TrainerMetrics) -> None:
        self._mixer = mixer
        self._plans = plans
        self._device = device
        self._metrics = metrics

    def epoch(self, epoch: int, batches: Iterable[Batch], *, first_batch: int = 0) -> Iterator[Prepared]:
        """Mix batches of an epoch; see `BatchMixing`."""
        for step, batch in enumerate(batches, first_batch):
            started = time.perf_counter()
            plan = self._plans.plan(epoch, step, len(batch))
            images, labels = _to_device(batch, self._device)
            seed = self._plans.seed(epoch, step)
            mixed = self._mixer.mix(images, labels, seed=seed, lam=plan.lam, partner=plan.partner)
            self._metrics.waited(time.perf_counter() - started)
            yield Prepared(clean=images, mixed=mixed)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch on its way; `pending` is None where the mixer was not even asked."""

    batch: Batch
    seed: int
    sent_at: float
    exchange: Exchange
    pending: PendingMix | None

    @property
    def num_bytes_under_way(self) -> int:
        return self.pending.num_bytes_under_way if self.pending else 0


class RemoteMixing:
    """Keeps `depth` batches under way to a server, and falls back batch by batch while it does not answer.

    Fewer are under way while `max_bytes_in_flight` of requests wait for their answers, and one at a time while the
    exchange is still being chosen.
    """

    def __init__(
        self,
        remote: RemoteMixer,
        *,
        fallback: Mixer,
        plans: PlanSeed,
        depth: int,
        max_bytes_in_flight: int,
        trial: Trial,
        breaker: Breaker,
        budget: FailureBudget,
        device: torch.device,
        metrics: TrainerMetrics,
    ) -> None:
        self._remote = remote
        self._fallback = fallback
        self._plans = plans
        self._depth = depth
        self._max_bytes_in_flight = max_bytes_in_flight
        self._trial = trial
        self._breaker = breaker
        self._budget = budget
        self._device = device
        self._metrics = metrics
        self._has_answered = False
        self._is_lost = False
        self._last_error: MixerError | None = None

    def epoch(self, epoch: int, batches: Iterable[Batch], *, first_batch: int = 0) -> Iterator[Prepared]:
        """Mix batches of an epoch; see `BatchMixing`.

        Raises:
            BudgetSpent: once the fallback mixed more batches than it may.
            BadBatch, MixerNotFound: if the server refuses the very first batch: then the configuration is wrong.
                Later it is the server that changed, and the run goes on with the fallback.
        """
        self._budget.renew()
        under_way: deque[_Sent] = deque()
        try:
            for step, batch in enumerate(batches, first_batch):
                while under_way and _bytes_of(under_way) >= self._max_bytes_in_flight:
                    yield self._receive(under_way.popleft())
                under_way.append(self._send(epoch, step, batch))
                self._metrics.in_flight.set(_bytes_of(under_way))
                if len(under_way) > self._depth or not self._trial.is_settled:
                    yield self._receive(under_way.popleft())
            while under_way:
                yield self._receive(under_way.popleft())
        finally:
            self._metrics.in_flight.set(0)
            for sent in under_way:
                if sent.pending is not None:
                    sent.pending.cancel()

    def _send(self, epoch: int, step: int, batch: Batch) -> _Sent:
        seed, exchange, pending = self._plans.seed(epoch, step), self._trial.next(), None
        if self._breaker.allows():
            plan = self._plans.plan(epoch, step, len(batch))
            pending = self._remote.submit(batch.images, batch.labels, plan=plan, exchange=exchange)
        return _Sent(batch, seed, self._breaker.now(), exchange, pending)

    def _receive(self, sent: _Sent) -> Prepared:
        started = time.perf_counter()
        mixed = self._answer(sent)
        if mixed is None:
            assert self._last_error is not None  # the breaker opens after a failure only
            self._budget.spend(self._last_error)
            self._metrics.fallbacks.inc()
            images, labels = _to_device(sent.batch, self._device)
            mixed = self._fallback.mix(images, labels, seed=sent.seed)
        self._metrics.waited(time.perf_counter() - started)
        return Prepared(clean=sent.batch.images, mixed=mixed)

    def _answer(self, sent: _Sent) -> MixedBatch | None:
        if sent.pending is None:
            return None
        try:
            mixed = sent.pending.result(self._device)
        except MixerError as error:
            if isinstance(error, (BadBatch, MixerNotFound)) and not self._has_answered:
                raise
            if isinstance(error, MixerTimeout):
                self._trial.timed_out(sent.exchange)
            self._breaker.failed(sent.sent_at)
            if not self._is_lost:
                fields = {"rank": self._plans.rank, "request": sent.pending.key}
                log.warning("mixer_lost", extra={**fields, "reason": str(error), "now": "fallback"})
            self._is_lost, self._last_error = True, error
            return None
        self._trial.answered(sent.exchange, sent.pending.times)
        self._breaker.succeeded()
        self._has_answered = True
        if self._is_lost:
            log.info("mixer_back", extra={"rank": self._plans.rank})
            self._is_lost = False
        return mixed


def _bytes_of(under_way: Iterable[_Sent]) -> int:
    return sum(sent.num_bytes_under_way for sent in under_way)


def _to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    return batch.images.to(device, non_blocking=True), batch.labels.to(device, non_blocking=True)
