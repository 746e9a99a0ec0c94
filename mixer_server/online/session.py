"""One co-training session: a thread of its own owns the mixer, everybody else leaves work on its desk."""

import hmac
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from mixer_server.online.agenda import Agenda, Answered, Settle, Waiting
from mixer_server.online.checkpoints import Checkpoints, SessionRecord
from mixer_server.online.config import OnlineServiceConfig
from mixer_server.online.desk import Close, Desk, End, Follow, Learn, Mix, Work
from mixer_server.online.keys import hash_token
from mixer_server.online.learner import Figures, Learner, mean_losses
from mixer_server.online.metrics import SessionMetrics
from samix.cotraining.settings import SessionSettings
from samix.cotraining.wire import Shapes, TrainCall
from samix.errors import BadBatch, MixerBroken, MixerCancelled, MixerError, NotTheOwner, WrongState
from samix.mixer.v1 import online_pb2 as pb
from samix.mixing.frozen import FrozenMixer

log = logging.getLogger(__name__)

_JOIN_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionParts:
    """What a session needs of the server."""

    config: OnlineServiceConfig
    checkpoints: Checkpoints
    metrics: SessionMetrics
    turn: threading.Lock
    """Held while any session computes: they share the processors, and torch's global generator."""
    clock: Callable[[], float] = time.monotonic


class Session:
    """Trains one mixer from `start` to `stop`. Safe for threads."""

    def __init__(self, record: SessionRecord, learner: Learner, parts: SessionParts, *, is_restored: bool) -> None:
        """Make a session.

        Args:
            record: what it is and where it stands.
            learner: in the state that the record tells of.
            parts: of the server.
            is_restored: whether it goes on from a checkpoint.
        """
        self.name = record.name
        self.settings = record.settings
        self.shapes: Shapes = learner.shapes
        """Names and shapes of the weights that trainers send."""
        self.next_step = record.step
        """Steps that the mixer has learned, or passed over."""
        self.checkpoint_step = record.step
        """Step of the newest checkpoint."""
        self._token_sha256 = record.token_sha256
        self._learner = learner
        self._parts = parts
        self._is_restored = is_restored
        self.desk = Desk(record.name, self._new_agenda(record.step, record.weights_step), parts.clock)
        """Where ranks and weights come and go."""
        self._losses: pb.OnlineLosses | None = None
        self._step_figures: list[Figures] = []
        self._thread = threading.Thread(target=self._run, name=f"session-{record.name}", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._parts.metrics.watch(self)
        self._thread.start()

    @property
    def is_broken(self) -> bool:
        """Whether its thread has failed: only its checkpoint is of use then."""
        return self.desk.is_broken

    @property
    def ranks(self) -> list[int]:
        """Ranks that are connected."""
        return self.desk.ranks

    @property
    def idle_s(self) -> float:
        """Time since somebody last sent something, in seconds."""
        return self._parts.clock() - self.desk.last_used_s

    @property
    def weights_age_s(self) -> float:
        """Time since the newest weights came, in seconds."""
        return self._parts.clock() - self.desk.weights_came_s

    def check_token(self, token: bytes) -> None:
        """Refuse a stranger, in a time that tells nothing.

        Raises:
            NotTheOwner: if the token is not the session's.
        """
        if not hmac.compare_digest(hash_token(token), self._token_sha256):
            raise NotTheOwner(f"the token is not that of session {self.name}; use the one that began it")

    def reopen(self, settings: SessionSettings, step: int) -> int:
        """Let a run that comes back go on at a step; returns where the session stood.

        Raises:
            WrongState: if it is another session by its settings.
        """
        self.check_same(settings)
        found = self.desk.ask(lambda: self._move(settings, step))
        if step != found:
            log.warning("session_moved", extra={"session": self.name, "from_step": found, "to_step": step})
        return found

    def join(self, rank: int, end: End) -> None:
        """Connect a rank; `end` is called if its stream is to end.

        Raises:
            BadBatch: if there is no such rank.
            RankTaken: if it is connected.
        """
        if not 0 <= rank < self.settings.world_size:
            raise BadBatch(f"rank must lie in 0..{self.settings.world_size - 1}, got {rank}", field="rank")
        self.desk.join(rank, end)

    def submit(self, call: TrainCall, rank: int, timeout_s: float, settle: Settle, end: End) -> None:
        """Leave a batch to be mixed and learned.

        Args:
            call: the batch.
            rank: whose it is.
            timeout_s: how long its rank waits.
            settle: called once, on another thread, with the answer or the reason why there is none; must be quick.
            end: with which the rank's stream joined.

        Raises:
            MixerError: if it cannot be taken.
        """
        now_s = self._parts.clock()
        deadline_s = now_s + timeout_s
        self.desk.submit(Waiting(call=call, rank=rank, came_s=now_s, deadline_s=deadline_s, settle=settle), end)

    def export(self, name: str) -> tuple[FrozenMixer, int]:
        """Cut out the mixer as it is now; returns it, and the steps that it has learned.

        Raises:
            WrongState: if it has not begun.
            MixerTimeout: if its thread has no time.
        """
        if self.desk.newest_weights is None:
            raise WrongState(f"session {self.name} has no weights yet, so there is no mixer; send them first")
        return self.desk.ask(lambda: (self._learner.freeze(name), self.next_step))

    def state(self) -> pb.SessionState:
        """Say where it stands."""
        with self.desk.changed:
            weights_step = self.desk.agenda.weights_step
            return pb.SessionState(
                step=self.next_step,
                has_weights=weights_step is not None,
                weights_step=weights_step or 0,
                weights_age_s=self.weights_age_s,
                checkpoint_step=self.checkpoint_step,
                is_restored=self._is_restored,
                ranks=self.desk.ranks,
                losses=self._losses,
            )

    def stop(self, reason: MixerError, *, saves: bool) -> None:
        """End all its streams and its thread; with `saves`, write it before."""
        if saves and self.desk.newest_weights is not None:
            try:
                self.desk.ask(self._save)
            except MixerError as error:
                log.warning("session_not_saved", extra={"session": self.name, "reason": str(error)})
        self.desk.close(reason)
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        self._parts.metrics.forget(self)

    def _new_agenda(self, step: int, weights_step: int | None) -> Agenda:
        return Agenda(
            self.settings, next_step=step, weights_step=weights_step, rank_wait_s=self._parts.config.rank_wait_s
        )

    def check_same(self, settings: SessionSettings) -> None:
        """Refuse settings of another session; how many ranks there are may change.

        Raises:
            WrongState: by value.
        """
        for name in settings.__slots__:
            ours, theirs = getattr(self.settings, name), getattr(settings, name)
            if ours != theirs and name != "world_size":
                raise WrongState(
                    f"session {self.name} has {name} {str(ours)[:80]}, got {str(theirs)[:80]}; go on with the settings "
                    "it had, or begin one of another name"
                )

    def _move(self, settings: SessionSettings, step: int) -> int:
        found, weights = self.next_step, self.desk.agenda.weights_step
        self.settings = self._learner.settings = settings
        # Older weights than the trainers have are none to go back to: the copy stays, and follows from there.
        agenda = self._new_agenda(step, None if weights is None else min(weights, step))
        self.desk.start_over(agenda, MixerCancelled("the run began anew, in another process"))
        self.next_step = step
        self._learner.forget_gradients()
        self._step_figures = []
        return found

    def _run(self) -> None:
        try:
            while (work := self.desk.next_work()) is not None:
                with self._parts.turn:
                    self._do(work)
        except Exception:  # the edge of this thread
            log.exception("session_failed", extra={"session": self.name})
            error = MixerBroken(f"session {self.name} failed; the server's log has the reason")
            self.desk.close(error, is_failure=True)

    def _do(self, work: Work) -> None:
        match work:
            case Follow():
                self._follow(work)
            case Mix():
                self._mix(work.agenda, work.waiting)
            case Learn():
                self._learn(work)
            case Close():
                self._close(work)
            case _:
                work()

    def _follow(self, work: Follow) -> None:
        before = work.agenda.weights_step
        if before is None:
            self._learner.start_from(work.weights)
        else:
            self._learner.catch_up(work.weights, range(before, work.step))
        with self.desk.changed:
            work.agenda.weights_step = work.step
        self._parts.metrics.followed(self)

    def _mix(self, agenda: Agenda, waiting: Waiting) -> None:
        try:
            mixed = self._learner.mix(waiting.call, waiting.rank)
        except (FloatingPointError, BadBatch) as error:
            waiting.settle(error if isinstance(error, BadBatch) else MixerBroken(str(error)))
            return
        step, weights_step, staleness = waiting.call.step, agenda.weights_step, agenda.staleness(waiting.call.step)
        assert weights_step is not None
        learned = agenda.next_step
        waiting.settle(
            Answered(logits=mixed.logits, learned_steps=learned, weights_step=weights_step, losses=self._losses)
        )
        self._parts.metrics.mixed(self, mixed, staleness, max(0, step - weights_step))
        with self.desk.changed:
            if not agenda.mixed(mixed):
                self._parts.metrics.late(self)

    def _learn(self, work: Learn) -> None:
        figures = self._learner.learn(work.mixed)
        if figures.is_finite:
            self._step_figures.append(figures)
            return
        with self.desk.changed:
            work.agenda.unlearned()
        fields = {"session": self.name, "step": work.mixed.call.step, "rank": work.mixed.rank}
        log.warning("loss_not_finite", extra=fields)

    def _close(self, work: Close) -> None:
        closed = work.closed
        if closed.num_batches and self._learner.finish_step(closed.step, closed.num_batches):
            self._losses = mean_losses(closed.step, self._step_figures)
        elif closed.num_batches:
            log.warning("gradient_not_finite", extra={"session": self.name, "step": closed.step})
            closed = replace(closed, num_batches=0)
        self._step_figures = []
        self._parts.metrics.closed(self, closed, self._losses)
        self.next_step = work.agenda.next_step
        if self.next_step - self.checkpoint_step >= self._parts.config.checkpoint_steps:
            self._save()

    def _save(self) -> None:
        record = SessionRecord(
            name=self.name,
            token_sha256=self._token_sha256,
            settings=self.settings,
            step=self.next_step,
            weights_step=self.desk.agenda.weights_step,
        )
        try:
            self._parts.checkpoints.save(record, self._learner.tensors())
        except OSError as error:
            log.warning("checkpoint_failed", extra={"session": self.name, "step": record.step, "reason": str(error)})
            self._parts.metrics.checkpoint_failed(self)
            return
        self.checkpoint_step = record.step
        self._parts.metrics.checkpoint_saved(self)
