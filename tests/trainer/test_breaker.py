"""When a failing mixer is left alone, and when a run gives up on it."""

import pytest
from clocks import Clock

from samix.errors import MixerUnavailable
from trainer.fallback import FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker, BudgetSpent, FailureBudget


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


def pauses(breaker: Breaker, clock: Clock, count: int) -> list[float]:
    """Fail `count` trials, each sent as soon as the breaker allows, and measure the pauses between them."""
    measured = []
    for _ in range(count):
        breaker.failed(breaker.now())
        failed_at = clock.now_s
        while not breaker.allows():
            clock.now_s += 0.25
        measured.append(clock.now_s - failed_at)
    return measured


def test_asks_before_the_first_failure(clock: Clock):
    """A mixer that has not failed is asked."""
    assert Breaker(clock).allows()


def test_pauses_double_up_to_the_longest(clock: Clock):
    """While a mixer keeps failing it is asked ever less often, but at least every ten seconds."""
    measured = pauses(Breaker(clock), clock, 7)

    assert measured == [FIRST_PAUSE_S, 1.0, 2.0, 4.0, 8.0, LONGEST_PAUSE_S, LONGEST_PAUSE_S]


def test_failures_of_one_outage_count_once(clock: Clock):
    """Batches that were sent before a failure was known do not lengthen the pause it caused."""
    breaker = Breaker(clock)
    sent = [breaker.now() for _ in range(4)]
    clock.now_s += 1.0

    for sent_at in sent:
        breaker.failed(sent_at)

    clock.now_s += FIRST_PAUSE_S
    assert breaker.allows()


def test_success_closes_the_breaker(clock: Clock):
    """After an answer every batch is sent again, and the next failure starts with the shortest pause."""
    breaker = Breaker(clock)
    pauses(breaker, clock, 4)

    breaker.succeeded()

    assert breaker.allows()
    assert pauses(breaker, clock, 1) == [FIRST_PAUSE_S]


def test_budget_is_spent_batch_by_batch():
    """A rank may mix exactly as many batches by its fallback as its budget says."""
    budget = FailureBudget(2, "host:8001")
    cause = MixerUnavailable("mixer at host:8001: connection refused")
    budget.spend(cause)
    budget.spend(cause)

    with pytest.raises(BudgetSpent) as refusal:
        budget.spend(cause)

    assert str(refusal.value) == (
        "a rank may mix 2 batches of an epoch by its fallback and needs one more (mixer at host:8001: connection "
        "refused); repair the mixer at host:8001, or raise --mixing.failure-budget"
    )
    assert refusal.value.__cause__ is cause


def test_budget_is_renewed_each_epoch():
    """A new epoch has a whole budget again."""
    budget = FailureBudget(1, "host:8001")
    budget.spend(MixerUnavailable("gone"))

    budget.renew()

    budget.spend(MixerUnavailable("gone"))


def test_budget_of_none_refuses_the_first():
    """A budget of 0 tolerates no fallback at all."""
    with pytest.raises(BudgetSpent):
        FailureBudget(0, "host:8001").spend(MixerUnavailable("gone"))
