"""What lies before the thread of a session: batches, weights and questions, under one lock."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from mixer_server.online.agenda import Agenda, Closed, Waiting
from mixer_server.online.learner import Mixed
from samix.errors import (
    MixerCancelled,
    MixerError,
    MixerOverloaded,
    MixerTimeout,
    MixerUnavailable,
    RankTaken,
    WrongState,
)

Result = TypeVar("Result")
End = Callable[[MixerError], None]
"""Ends the stream of a rank."""

_QUESTION_S = 60.0
"""Longest a question waits for the thread, seconds."""
_WEIGHTS_AGAIN_S = 1.0
"""When to send weights again that came beside others."""
_LOOK_S = 0.5
"""Longest between two looks of the thread at what changes without a word."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Let the momentum copy follow."""

    agenda: Agenda
    step: int
    weights: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Mix:
    """Mix a batch for its rank."""

    agenda: Agenda
    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Learn:
    """Learn from a batch that was mixed."""

    agenda: Agenda
    mixed: Mixed


@dataclass(frozen=True, slots=True)
class Close:
    """End a step."""

    agenda: Agenda
    closed: Closed


Work = Follow | Mix | Learn | Close | Callable[[], None]
"""What the thread does next; a callable answers a question."""


class Desk:
    """Takes work from any thread, and gives it to the session's."""

    def __init__(self, name: str, agenda: Agenda, clock: Callable[[], float]) -> None:
        self.changed = threading.Condition()
        """Held to look at, or change, what is here."""
        self.agenda = agenda
        """The batches; replaced when a run comes back, so that what is under way ends in the old one."""
        self.newest_weights = agenda.weights_step
        """Steps of the newest weights that are here, followed or not; None before the first."""
        self.weights_came_s = clock()
        """When they came, by the clock."""
        self.last_used_s = clock()
        """When somebody last sent something, by the clock."""
        self._name = name
        self._clock = clock
        self._weights: tuple[int, Mapping[str, Tensor]] | None = None  # the newest that wait
        self._is_taking_weights = False
        self._questions: list[Callable[[], None]] = []
        self._streams: dict[int, End] = {}
        self._is_closed = False
        self._failure: MixerError | None = None

    @property
    def ranks(self) -> list[int]:
        """Ranks that are connected."""
        return sorted(self._streams)

    @property
    def is_broken(self) -> bool:
        """Whether the thread has failed."""
        return self._failure is not None

    def join(self, rank: int, end: End) -> None:
        """Connect a rank.

        Raises:
            RankTaken: if it is connected.
        """
        with self.changed:
            self._check_open()
            if rank in self._streams:
                raise RankTaken(f"rank {rank} of session {self._name} is connected; a rank has one stream")
            self._streams[rank] = end
            self._touch()

    def leave(self, rank: int, end: End) -> None:
        """Disconnect a rank, unless another stream has its place by now; what it sent is dropped."""
        with self.changed:
            if self._streams.get(rank) != end:
                return
            del self._streams[rank]
            dropped = self.agenda.drop_rank(rank)
            self._touch()
        for waiting in dropped:
            waiting.settle(MixerCancelled("the rank is gone"))

    def submit(self, waiting: Waiting, end: End) -> None:
        """Take a batch of the stream that joined with this `end`.

        Raises:
            BadBatch: if its step is none that its rank may send now.
            MixerCancelled: if the stream has lost its place: its steps are none of the run that came back.
            MixerError: if the session has ended.
        """
        with self.changed:
            self._check_open()
            if self._streams.get(waiting.rank) != end:
                raise MixerCancelled("the rank is gone")
            self.agenda.add(waiting)
            self._touch()

    def begin_weights(self, step: int) -> None:
        """Reserve the place of weights that come; `end_weights` gives it back.

        Raises:
            WrongState: if there are newer ones.
            MixerOverloaded: if others are coming.
        """
        with self.changed:
            self._check_open()
            newest = self.newest_weights
            if newest is not None and step < newest:
                raise WrongState(f"weights of step {step} came, the session has some of step {newest}; send newer ones")
            if self._is_taking_weights:
                raise MixerOverloaded(f"weights of session {self._name} are on their way already", _WEIGHTS_AGAIN_S)
            self._is_taking_weights = True

    def end_weights(self) -> None:
        """Give the place back, whatever became of them."""
        with self.changed:
            self._is_taking_weights = False

    def offer_weights(self, step: int, weights: Mapping[str, Tensor]) -> int:
        """Take weights, in the place of those that still wait; returns the step of the newest.

        Raises:
            MixerError: if the session has ended.
        """
        with self.changed:
            self._check_open()
            if self.newest_weights is None or step > self.newest_weights:
                self._weights = step, weights
                self.newest_weights, self.weights_came_s = step, self._clock()
            self._touch()
            return self.newest_weights

    def ask(self, answer: Callable[[], Result]) -> Result:
        """Have the thread answer a question, between two passes.

        Raises:
            MixerTimeout: if it has no time.
            MixerError: if the session has ended.
        """
        done: Future[Result] = Future()

        def question() -> None:
            if self._is_closed:
                done.set_exception(self._leaving())
                return
            try:
                done.set_result(answer())
            except Exception as error:  # noqa: BLE001 - whoever asked shall have it
                done.set_exception(error)

        with self.changed:
            self._check_open()
            self._questions.append(question)
            self._touch()
        try:
            return done.result(_QUESTION_S)
        except FutureTimeout:
            raise MixerTimeout(f"session {self._name} has been busy for {_QUESTION_S:g} s; ask again") from None

    def start_over(self, agenda: Agenda, reason: MixerError) -> None:
        """Let go of all streams and what they sent, and go on with another agenda."""
        with self.changed:
            self._abandon(reason)
            self.agenda = agenda
            self._weights, self.newest_weights = None, agenda.weights_step
            self._touch()

    def close(self, reason: MixerError, *, is_failure: bool = False) -> None:
        """Let go of everything: `next_work` returns None from now on."""
        with self.changed:
            if is_failure:
                self._failure = reason
            self._is_closed = True
            self._abandon(reason)
            questions, self._questions = self._questions, []
            self.changed.notify_all()
        for question in questions:
            question()

    def next_work(self) -> Work | None:
        """Wait for something to do: what somebody waits for comes first. None at the end."""
        with self.changed:
            while not self._is_closed:
                now_s = self._clock()
                for waiting in self.agenda.take_overdue(now_s):
                    waiting.settle(_too_late(waiting, self.agenda))
                work = self._choose(now_s)
                if work is not None:
                    return work
                look_s = self.agenda.next_look_s()
                self.changed.wait(_LOOK_S if look_s is None else min(_LOOK_S, max(look_s - now_s, 0.001)))
            return None

    def _choose(self, now_s: float) -> Work | None:
        agenda = self.agenda
        # Not before the mixer has learned all steps that were mixed by older weights.
        if self._weights is not None and (agenda.weights_step is None or self._weights[0] <= agenda.next_step):
            return self._take_weights(agenda)
        if self._questions:
            return self._questions.pop(0)
        if (waiting := agenda.next_to_mix()) is not None:
            return Mix(agenda, waiting)
        if (mixed := agenda.next_to_learn()) is not None:
            return Learn(agenda, mixed)
        if (closed := agenda.close_step(now_s)) is not None:
            return Close(agenda, closed)
        if self._weights is not None and agenda.lacks_weights():  # those that were due never came
            return self._take_weights(agenda)
        return None

    def _take_weights(self, agenda: Agenda) -> Follow:
        assert self._weights is not None
        (step, weights), self._weights = self._weights, None
        return Follow(agenda, step, weights)

    def _abandon(self, reason: MixerError) -> None:
        dropped, streams = self.agenda.drop_all(), list(self._streams.values())
        self._streams.clear()
        for waiting in dropped:
            waiting.settle(reason)
        for end in streams:
            end(reason)

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._is_closed:
            raise self._leaving()

    def _leaving(self) -> MixerUnavailable:
        return MixerUnavailable(f"session {self._name} leaves this server; come again")

    def _touch(self) -> None:
        self.last_used_s = self._clock()
        self.changed.notify_all()


def _too_late(waiting: Waiting, agenda: Agenda) -> MixerTimeout:
    if agenda.weights_step is None:
        return MixerTimeout(f"step {waiting.call.step} waits for the first weights, which rank 0 sends")
    return MixerTimeout(
        f"step {waiting.call.step} was not mixed in time: the mixer has learned {agenda.next_step} steps, its weights "
        f"are those after {agenda.weights_step}"
    )
