"""Batches that a server mixes while it learns from them, with a fallback for each that it does not answer.

    loader --> plans --> send ... a step or two ahead ... --> receive --> step --> weights, every K steps
                                                         \\--> fallback, counted

However the server behaves, one batch in gives exactly one batch out. It may be gone for a while: ranks join again by
themselves, and rank 0 opens the session anew where the server has lost it.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from samix.client.online.rank import MixAnswer, PendingLogits, RankStream
from samix.client.online.session import OnlineSession
from samix.client.online.weights import WeightSender
from samix.cotraining.wire import TrainCall, WeightKind
from samix.errors import BadBatch, MixerError, MixerNotFound
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.batch import MixedBatch, as_unit_float
from samix.mixing.classifier import Classifier
from samix.mixing.online import floating_state
from samix.mixing.online_config import OnlineConfig, StepPlans, draw_step_plans
from samix.mixing.plan import derive_seed, generator_for
from samix.mixing.protocol import Mixer
from samix.mixing.students import compose_students
from services.shards.dataset import Batch
from trainer.fallback import Breaker, FailureBudget
from trainer.metrics import TrainerMetrics
from trainer.prefetch import Prepared
from trainer.sessions.opening import SessionOpener

log = logging.getLogger(__name__)

FIGURES = ("mixer_loss", "lam_error", "spread")
_SERVER_HOLDS_S = 600.0
"""Longest the server may hold a batch, unless it says less: whoever waits for it here has a deadline of its own."""
_REOPEN_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MixedOnline(Prepared):
    """A batch that the mixer in training mixed, or the fallback."""

    step: int
    """Number of the step in the run, from 0."""
    figures: dict[str, float]
    """What the mixer's last step cost and how its masks looked, by FIGURES; zeros before the first is known."""


@dataclass(frozen=True, slots=True)
class _Sent:
    batch: Batch
    plans: StepPlans
    seed: int
    step: int
    sent_at: float
    pending: PendingLogits | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """Where the plans of a rank come from."""

    config: OnlineConfig
    run_seed: int
    rank: int
    steps_per_epoch: int


class SessionMixing:
    """Has batches mixed in a session; `connect` it before the first epoch, `close` it at the end."""

    def __init__(
        self,
        opener: SessionOpener,
        *,
        classifier: Classifier,
        fallback: Mixer,
        drawing: Drawing,
        depth: int,
        deadline_s: float,
        breaker: Breaker,
        budget: FailureBudget,
        device: torch.device,
        metrics: TrainerMetrics,
        weights: WeightKind,
    ) -> None:
        self._opener = opener
        self._classifier = classifier
        self._fallback = fallback
        self._drawing = drawing
        self._depth = depth
        self._deadline_s = deadline_s
        self._breaker = breaker
        self._budget = budget
        self._device = device
        self._metrics = metrics
        self._weights: WeightKind = weights
        self._session: OnlineSession | None = None
        self._stream: RankStream | None = None
        self._sender: WeightSender | None = None
        self._figures: dict[str, float] = dict.fromkeys(FIGURES, 0.0)
        self._learned_steps = 0
        self._num_joins = 0
        self._is_lost = False
        self._last_error: MixerError | None = None

    @property
    def session(self) -> OnlineSession | None:
        """What the ranks share; None before the first epoch."""
        return self._session

    def epoch(self, epoch: int, batches: Iterable[Batch], *, first_batch: int = 0) -> Iterator[MixedOnline]:
        """Mix batches of an epoch; see `BatchMixing`.

        Raises:
            BudgetSpent: once the fallback mixed more batches than it may.
            ConfigError: if the session cannot be opened for the first epoch.
        """
        self._connect(epoch * self._drawing.steps_per_epoch + first_batch)
        self._budget.renew()
        under_way: deque[_Sent] = deque()
        for number, batch in enumerate(batches, first_batch):
            under_way.append(self._send(epoch, number, batch))
            if len(under_way) > self._depth:
                yield self._receive(under_way.popleft())
        while under_way:
            yield self._receive(under_way.popleft())

    def updated(self, step: int) -> None:
        """Send the weights after a step, where they are due; rank 0 alone sends any."""
        done, session = step + 1, self._session
        if self._sender is None or session is None:
            return
        if done % session.settings.weights_every == 0:
            self._sender.offer(done, floating_state(self._classifier), self._weights)

    def close(self) -> None:
        """Leave the session; it stays on the server."""
        if self._stream is not None:
            self._stream.close()
        if self._sender is not None:
            self._sender.close()
        self._opener.close()

    def _connect(self, step: int) -> None:
        if self._session is not None:
            return
        self._session, shapes = self._opener.open(step)
        if self._drawing.rank == 0:
            assert shapes is not None
            self._sender = WeightSender(self._session, shapes, self._metrics)
            self._sender.start()
            # Exact, whatever follows: the momentum copy starts from them.
            self._sender.offer(step, floating_state(self._classifier), "float32")
        self._stream = RankStream(self._session, self._drawing.rank, self._metrics, self._joined)
        self._depth = min(self._depth, self._stream.credits - 1)

    def _joined(self, state: pb.SessionState) -> None:
        """Note where the session stands; on another thread."""
        self._num_joins += 1
        if self._num_joins == 1:
            return
        lost = max(0, self._learned_steps - state.step)
        self._metrics.reconnected(lost)
        fields = {"rank": self._drawing.rank, "checkpoint_step": state.step, "lost_steps": lost}
        log.warning("session_joined_again", extra=fields)
        if self._sender is not None:
            self._sender.send_again()

    def _send(self, epoch: int, number: int, batch: Batch) -> _Sent:
        drawing = self._drawing
        generator = generator_for(drawing.run_seed, epoch, number, drawing.rank)
        plans = draw_step_plans(len(batch), drawing.config, generator)
        step = epoch * drawing.steps_per_epoch + number
        pending = None
        if self._breaker.allows():
            assert self._stream is not None
            call = TrainCall(step=step, images=batch.images, labels=batch.labels, plans=plans)
            pending = self._stream.submit(call, _SERVER_HOLDS_S)
        seed = derive_seed(drawing.run_seed, epoch, number, drawing.rank)
        return _Sent(batch, plans, seed, step, self._breaker.now(), pending)

    def _receive(self, sent: _Sent) -> MixedOnline:
        started = time.perf_counter()
        images = sent.batch.images.to(self._device, non_blocking=True)
        labels = sent.batch.labels.to(self._device, non_blocking=True)
        answer = self._answer(sent)
        if answer is None:
            assert self._last_error is not None  # the breaker opens after a failure only
            self._budget.spend(self._last_error)
            self._metrics.fallbacks.inc()
            mixed = self._fallback.mix(images, labels, seed=sent.seed)
        else:
            mixed = self._compose(images, labels, sent.plans, answer)
        self._metrics.waited(time.perf_counter() - started)
        return MixedOnline(clean=sent.batch.images, mixed=mixed, step=sent.step, figures=self._figures)

    def _compose(self, images: Tensor, labels: Tensor, plans: StepPlans, answer: MixAnswer) -> MixedBatch:
        assert self._session is not None
        spec = self._session.settings.mixer
        logits = answer.logits.to(self._device)
        plans = plans.to(self._device)
        return compose_students(as_unit_float(images), labels, plans, logits, spec.rendering, mode=spec.mode)

    def _answer(self, sent: _Sent) -> MixAnswer | None:
        if sent.pending is None:
            return None
        try:
            answer = sent.pending.result(self._deadline_s)
        except MixerError as error:
            if isinstance(error, BadBatch) and not self._learned_steps and not self._is_lost:
                raise  # the very first one: the configuration is wrong
            self._note_failure(sent, error)
            return None
        self._breaker.succeeded()
        self._learned_steps = answer.info.learned_steps
        if answer.info.HasField("losses"):
            losses = answer.info.losses
            self._figures = dict(zip(FIGURES, (losses.classification, losses.lam_error, losses.spread), strict=True))
        if self._is_lost:
            log.info("mixer_back", extra={"rank": self._drawing.rank})
            self._is_lost = False
        return answer

    def _note_failure(self, sent: _Sent, error: MixerError) -> None:
        self._breaker.failed(sent.sent_at)
        if not self._is_lost:
            log.warning("mixer_lost", extra={"rank": self._drawing.rank, "reason": str(error), "now": "fallback"})
        self._is_lost, self._last_error = True, error
        if isinstance(error, MixerNotFound) and self._drawing.rank == 0:
            self._open_again(sent.step)

    def _open_again(self, step: int) -> None:
        """Begin the session anew: the server has neither it nor a checkpoint of it."""
        assert self._session is not None
        assert self._sender is not None
        try:
            opened = self._session.open(step, timeout_s=_REOPEN_S)
        except MixerError as error:
            self._last_error = error
            return
        if opened.is_new:
            log.warning("session_begun_anew", extra={"step": step, "lost_steps": self._learned_steps})
            self._metrics.reconnected(self._learned_steps)
            self._learned_steps = 0
        self._sender.send_again()
