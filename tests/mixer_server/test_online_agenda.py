"""What a session does next, for ranks that are early, late or gone."""

from typing import Any

import pytest
import torch
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st

from mixer_server.online.agenda import Agenda, Closed, Waiting
from mixer_server.online.learner import Mixed
from samix.cotraining.settings import Learning, SessionSettings
from samix.cotraining.wire import TrainCall
from samix.errors import BadBatch
from samix.mixing.batch import MixPlan
from samix.mixing.online_config import OnlineConfig, StepPlans
from samix.mixing.optimise import OptimiserConfig, RunLength
from samix.mixing.presets import tiny_spec

PATIENCE_S = 5.0
EMPTY = MixPlan(lam=torch.empty(0), partner=torch.empty(0, dtype=torch.int64))


def agenda(
    *, world_size: int = 1, max_staleness: int = 0, weights_every: int = 1, next_step: int = 0, weights_step: int = 0
) -> Agenda:
    settings = SessionSettings(
        mixer=tiny_spec(),
        learning=Learning(online=OnlineConfig(), optimiser=OptimiserConfig()),
        num_classes=10,
        clean_head=False,
        world_size=world_size,
        batch_size=8,
        length=RunLength(steps_per_epoch=100, epochs=1),
        seed=0,
        weights_every=weights_every,
        max_staleness=max_staleness,
    )
    return Agenda(settings, next_step=next_step, weights_step=weights_step, rank_wait_s=PATIENCE_S)


def batch(step: int, rank: int = 0, *, came_s: float = 0.0, deadline_s: float = 60.0) -> Waiting:
    plans = StepPlans(mixers=EMPTY, students=EMPTY, adjusts=False)
    call = TrainCall(step=step, images=torch.empty(0), labels=torch.empty(0), plans=plans)
    return Waiting(call=call, rank=rank, came_s=came_s, deadline_s=deadline_s, settle=lambda _: None)


def mix(one: Agenda) -> tuple[int, int] | None:
    """Mix what may be mixed; returns its step and rank."""
    waiting = one.next_to_mix()
    if waiting is None:
        return None
    nothing: Any = torch.empty(0)
    one.mixed(Mixed(call=waiting.call, rank=waiting.rank, features=nothing, logits=nothing))
    return waiting.call.step, waiting.rank


def learn(one: Agenda) -> int:
    """Learn what may be learned; returns how many batches."""
    count = 0
    while one.next_to_learn() is not None:
        count += 1
    return count


def test_lock_step_mixes_no_batch_before_the_step_before_is_learned():
    """Without staleness, a batch that came early waits for the step before it, and for its weights."""
    one = agenda()
    one.add(batch(0))
    one.add(batch(1))

    assert mix(one) == (0, 0)
    assert mix(one) is None
    assert learn(one) == 1
    assert one.close_step(0.0) == Closed(step=0, num_batches=1, num_steps=1)
    assert mix(one) is None  # its weights are those after one step
    assert one.lacks_weights()
    one.weights_step = 1
    assert mix(one) == (1, 0)


def test_staleness_lets_the_mixer_lag():
    """With a staleness of 2, three batches are mixed before the first is learned, and no more."""
    one = agenda(max_staleness=2)
    for step in range(4):
        one.add(batch(step))

    assert [mix(one) for _ in range(4)] == [(0, 0), (1, 0), (2, 0), None]
    assert one.staleness(2) == 2


def test_weights_every_few_steps_are_waited_for_when_they_are_due():
    """With K = 3, batches 0 to 2 need the first weights, batch 3 those after 3 steps."""
    one = agenda(weights_every=3, next_step=2)
    one.add(batch(2))
    assert mix(one) == (2, 0)
    learn(one)
    one.close_step(0.0)
    one.add(batch(3))

    assert mix(one) is None

    one.weights_step = 3
    assert mix(one) == (3, 0)


def test_no_batch_is_mixed_before_the_first_weights():
    """A session without weights mixes nothing, however stale it may be."""
    one = agenda(max_staleness=5)
    one.weights_step = None
    one.add(batch(0))

    assert mix(one) is None
    assert one.lacks_weights()


def test_a_step_waits_for_all_ranks():
    """A step is learned when every rank's batch is, in the order in which they came."""
    one = agenda(world_size=2)
    one.add(batch(0, rank=1))
    assert mix(one) == (0, 1)
    assert learn(one) == 1

    assert one.close_step(1.0) is None

    one.add(batch(0, rank=0))
    assert one.close_step(1.0) is None
    assert mix(one) == (0, 0)
    assert learn(one) == 1
    assert one.close_step(1.0) == Closed(step=0, num_batches=2, num_steps=1)


def test_a_late_rank_is_waited_for_and_then_left_out():
    """A rank that sends nothing holds a step up for its patience, and no longer; what it sends then is only mixed."""
    one = agenda(world_size=2)
    one.add(batch(0, rank=0, came_s=10.0))
    mix(one)
    learn(one)

    assert one.close_step(10.0 + PATIENCE_S - 0.1) is None
    assert one.next_look_s() == 10.0 + PATIENCE_S
    assert one.close_step(10.0 + PATIENCE_S) == Closed(step=0, num_batches=1, num_steps=1)

    one.add(batch(0, rank=1, came_s=16.0))
    assert mix(one) == (0, 1)
    assert learn(one) == 0


def test_ranks_that_are_gone_leave_nothing_to_look_at():
    """Once what ranks sent is dropped, or was late, time changes nothing: whoever looks again at once would spin."""
    one = agenda(world_size=2, next_step=5, weights_step=5)
    one.add(batch(6, rank=0, came_s=1.0))
    one.add(batch(2, rank=1, came_s=2.0))
    assert mix(one) == (2, 1)
    assert one.next_look_s() == 1.0 + PATIENCE_S

    one.drop_rank(0)

    assert one.next_look_s() is None
    one.add(batch(5, rank=1, came_s=20.0))
    assert mix(one) == (5, 1)
    assert learn(one) == 1
    assert one.close_step(20.0) == Closed(step=5, num_batches=1, num_steps=1)  # the other rank had sent step 6


def test_a_late_batch_does_not_shorten_patience():
    """A step waits for its ranks from its own first batch, not from a late one of a step before."""
    one = agenda(world_size=2, next_step=5, weights_step=5)
    one.add(batch(2, rank=1, came_s=0.0))
    mix(one)
    one.add(batch(5, rank=0, came_s=4.0))
    mix(one)
    learn(one)

    assert one.close_step(PATIENCE_S) is None
    assert one.next_look_s() == 4.0 + PATIENCE_S


def test_a_rank_that_went_on_is_not_waited_for():
    """A rank that sent a later step has none for this one: it fell back."""
    one = agenda(world_size=2, max_staleness=1)
    one.add(batch(0, rank=0))
    one.add(batch(1, rank=1))
    assert [mix(one), mix(one)] == [(0, 0), (1, 1)]
    learn(one)

    assert one.close_step(0.0) == Closed(step=0, num_batches=1, num_steps=1)


def test_steps_that_nobody_sent_are_passed_over():
    """After a time without the server all ranks are at a later step; those before are passed over at once."""
    one = agenda(world_size=2, next_step=3, weights_step=3)
    one.add(batch(10, rank=0))
    assert one.close_step(0.0) is None  # the other rank may be at step 3 yet
    one.add(batch(10, rank=1))

    assert one.close_step(0.0) == Closed(step=3, num_batches=0, num_steps=7)
    assert one.next_step == 10


def test_batches_that_are_given_up_block_nobody():
    """A batch whose rank has given up leaves, and its step goes on without it."""
    one = agenda(world_size=1)
    one.weights_step = None
    one.add(batch(0, deadline_s=1.0))
    one.add(batch(1, deadline_s=9.0))

    assert [late.call.step for late in one.take_overdue(2.0)] == [0]
    assert one.close_step(2.0) == Closed(step=0, num_batches=0, num_steps=1)


def test_steps_of_a_rank_rise_and_end_with_the_run():
    """A step that a rank has sent, or that is beyond the run, is refused."""
    one = agenda()
    one.add(batch(1))

    with pytest.raises(BadBatch, match="must rise"):
        one.add(batch(1))
    with pytest.raises(BadBatch, match="length of the run"):
        one.add(batch(100))


@given(
    world_size=st.integers(1, 3),
    staleness=st.integers(0, 3),
    sent=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans()), max_size=60),
)
def test_whatever_ranks_send_the_session_goes_on(world_size: int, staleness: int, sent: list[tuple[int, int, bool]]):
    """However ranks skip, lag or give up, each batch is mixed or given up, no mix is too stale, time ends waits."""
    one, clock = agenda(world_size=world_size, max_staleness=staleness), Clock()
    newest, open_ = [-1] * world_size, 0
    for rank, ahead, hurries in sent:
        step = newest[rank % world_size] + ahead
        if step >= 100:
            continue
        newest[rank % world_size] = step
        now_s = clock()
        one.add(batch(step, rank % world_size, came_s=now_s, deadline_s=now_s + (1.0 if hurries else 1e9)))
        open_ += 1
        open_ -= _work(one, clock(), staleness)
    for _ in range(200):
        look_s = one.next_look_s()
        if look_s is None or look_s > 1e8:
            break
        clock.now_s = max(look_s, clock() + 0.1)
        open_ -= _work(one, clock(), staleness)

    assert open_ == 0


def _work(one: Agenda, now_s: float, staleness: int) -> int:
    """Do all there is to do at a time, with weights that come at once; returns how many batches are done."""
    done = 0
    while True:
        before = one.next_step
        done += len(one.take_overdue(now_s))
        one.weights_step = 100
        while (mixed := mix(one)) is not None:
            done += 1
            assert mixed[0] - one.next_step <= staleness
        learn(one)
        closed = one.close_step(now_s)
        if closed is None:
            return done
        assert one.next_step > before
