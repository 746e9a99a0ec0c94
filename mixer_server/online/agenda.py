"""What a session does next: which batch may be mixed, which step may be learned, and what is too late.

Batches of a rank come in the order of their steps, some ahead. Step t may be mixed once all steps up to t - S are
learned and the weights due for it are here, S being the staleness that the session allows. A step is learned once every
rank has sent a batch of that step or of a later one; a rank that sends nothing is waited for, but not for ever. Knows
steps and clocks, not tensors' contents; belongs to one lock.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from mixer_server.online.learner import Mixed
from samix.cotraining.settings import SessionSettings
from samix.cotraining.wire import TrainCall
from samix.errors import BadBatch, MixerError
from samix.mixer.v1 import online_pb2 as pb


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """A mixed batch, and where the mixer stood when it was mixed."""

    logits: Tensor
    """float32 [B, 1, h, w]; alone, for an answer that is read late should not hold the batch and its features."""
    learned_steps: int
    """Steps that the mixer had learned."""
    weights_step: int
    """Steps of the weights that its momentum copy had followed."""
    losses: pb.OnlineLosses | None
    """What the last step cost; None before the first."""


Settle = Callable[[Answered | MixerError], None]
"""Takes the answer to a batch, or the reason why there is none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Waiting:
    """A batch that waits to be mixed."""

    call: TrainCall
    """The batch."""
    rank: int
    """Whose it is."""
    came_s: float
    """When it came, by the session's clock."""
    deadline_s: float
    """When its rank has given up, by that clock."""
    settle: Settle
    """Called once; must be quick."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Closed:
    """A step that is over."""

    step: int
    """Its number; the first of them where several were passed over."""
    num_batches: int
    """Batches that were learned; 0 where steps were passed over, for no rank sent a batch of them."""
    num_steps: int
    """How many steps; more than one only where they were passed over."""


class Agenda:
    """The batches of a session."""

    def __init__(self, settings: SessionSettings, *, next_step: int, weights_step: int | None, rank_wait_s: float):
        self.next_step = next_step
        """The step that is learned next; all before are learned, or were passed over."""
        self.weights_step = weights_step
        """Steps of the weights that the momentum copy followed last; None before the first."""
        self._settings = settings
        self._rank_wait_s = rank_wait_s
        self._waiting: dict[int, deque[Waiting]] = defaultdict(deque)  # by rank, in the order of steps
        self._to_learn: dict[int, list[Mixed]] = defaultdict(list)  # by step
        self._num_learned = 0  # batches of `next_step`
        self._newest: dict[int, int] = {}  # by rank, the last step it sent
        self._first_came_s: dict[int, float] = {}  # by step

    def add(self, waiting: Waiting) -> None:
        """Take a batch.

        Raises:
            BadBatch: if its rank has sent that step, or a later one.
        """
        step, rank = waiting.call.step, waiting.rank
        newest = self._newest.get(rank)
        if newest is not None and step <= newest:
            raise BadBatch(f"rank {rank} sent step {step} after step {newest}; steps of a rank must rise", field="step")
        total = self._settings.length.total_steps
        if step >= total:
            raise BadBatch(f"step must be below {total}, the length of the run, got {step}", field="step")
        self._newest[rank] = step
        self._waiting[rank].append(waiting)
        self._first_came_s.setdefault(step, waiting.came_s)

    def drop_rank(self, rank: int) -> list[Waiting]:
        """Forget the batches of a rank that is gone, and return them; it may have sent more than came."""
        return list(self._waiting.pop(rank, ()))

    def drop_all(self) -> list[Waiting]:
        """Forget all that waits, and return it."""
        return [waiting for rank in list(self._waiting) for waiting in self.drop_rank(rank)]

    def next_to_mix(self) -> Waiting | None:
        """Take the batch that is to be mixed now: the earliest step, then the lowest rank; None where none may be."""
        heads = [queue[0] for queue in self._waiting.values() if queue and self._may_mix(queue[0].call.step)]
        if not heads:
            return None
        chosen = min(heads, key=lambda waiting: (waiting.call.step, waiting.rank))
        return self._waiting[chosen.rank].popleft()

    def mixed(self, mixed: Mixed) -> bool:
        """Keep a mixed batch to learn from; False if its step is over."""
        if mixed.call.step < self.next_step:
            return False
        self._to_learn[mixed.call.step].append(mixed)
        return True

    def next_to_learn(self) -> Mixed | None:
        """Take a batch of the next step; None where there is none."""
        batches = self._to_learn.get(self.next_step)
        if not batches:
            return None
        self._num_learned += 1
        return batches.pop(0)

    def unlearned(self) -> None:
        """Note that the batch taken last taught nothing."""
        self._num_learned -= 1

    def close_step(self, now_s: float) -> Closed | None:
        """Close the next step, or pass over those that nobody sent; None while something of it is awaited."""
        if not self._is_over(now_s):
            return None
        step, num_batches = self.next_step, self._num_learned
        later = min(self._known_steps(), default=step + 1)
        self.next_step = step + 1 if num_batches else later
        self._num_learned = 0
        for known in [known for known in self._first_came_s if known < self.next_step]:
            del self._first_came_s[known]
        for known in [known for known in self._to_learn if known < self.next_step]:
            del self._to_learn[known]
        return Closed(step=step, num_batches=num_batches, num_steps=self.next_step - step)

    def take_overdue(self, now_s: float) -> list[Waiting]:
        """Take the batches that their ranks have given up."""
        late = [waiting for waiting in self._all_waiting() if waiting.deadline_s <= now_s]
        for waiting in late:
            self._waiting[waiting.rank].remove(waiting)
        return late

    def next_look_s(self) -> float | None:
        """Say when time alone changes something, by the session's clock; None where it never does."""
        looks = [waiting.deadline_s for waiting in self._all_waiting()]
        if self._waits_for_ranks():  # otherwise an end of patience that has passed would make the thread spin
            looks.append(self._patience_ends_s())
        return min(looks, default=None)

    def lacks_weights(self) -> bool:
        """Tell whether nothing but weights is missing for a batch to be mixed."""
        heads = [queue[0].call.step for queue in self._waiting.values() if queue]
        return any(self._has_learned_for(step) and not self._may_mix(step) for step in heads)

    def staleness(self, step: int) -> int:
        """Say by how many steps the mixer lags behind a batch that is mixed now."""
        return max(0, step - self.next_step)

    def _may_mix(self, step: int) -> bool:
        has_weights = self.weights_step is not None and self.weights_step >= self._settings.weights_due(step)
        return has_weights and self._has_learned_for(step)

    def _has_learned_for(self, step: int) -> bool:
        return step - self._settings.max_staleness <= self.next_step

    def _is_over(self, now_s: float) -> bool:
        if not self._waits_for_ranks():
            return False
        ranks = range(self._settings.world_size)
        return all(self._newest.get(rank, -1) >= self.next_step for rank in ranks) or now_s >= self._patience_ends_s()

    def _waits_for_ranks(self) -> bool:
        """Tell whether the next step has begun, or others after it, and only further ranks could add to it."""
        if self._to_learn.get(self.next_step) or any(
            waiting.call.step <= self.next_step for waiting in self._all_waiting()
        ):
            return False
        return self._num_learned > 0 or any(step > self.next_step for step in self._known_steps())

    def _patience_ends_s(self) -> float:
        came_s = [came_s for step, came_s in self._first_came_s.items() if step >= self.next_step]  # others are late
        return min(came_s) + self._rank_wait_s

    def _known_steps(self) -> list[int]:
        """List the steps of which there are batches still to be mixed or learned."""
        waiting = [waiting.call.step for waiting in self._all_waiting()]
        return waiting + [step for step, batches in self._to_learn.items() if batches]

    def _all_waiting(self) -> Iterator[Waiting]:
        for queue in self._waiting.values():
            yield from queue
