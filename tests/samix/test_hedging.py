"""A mix that takes long is sent to a second replica, and the first answer is taken."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripted_server import PATIENCE_S, ScriptedServicer, Tally, contrast_logits, serving
from torch import Tensor

from samix.client.config import ClientConfig, HedgePolicy, RetryPolicy
from samix.client.hedging import Hedging
from samix.client.pending import PendingMix
from samix.client.remote import RemoteMixer, connect
from samix.errors import BadBatch, MixerUnavailable
from samix.mixing.plan import generator_for, resolve_plan

IMAGES = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).remainder(256).byte()
PLAN = resolve_plan(2, lam=None, partner=None, generator=generator_for(1))
OFTEN = HedgePolicy(min_delay_s=0.15, max_share=0.5)
DOWN = MixerUnavailable("server is shutting down")
WARM_UP = 20
"""Mixes until it is known how long they take."""


class HedgeTally(Tally):
    """Tells when so many were hedged."""

    def __init__(self, awaited: int = 1) -> None:
        super().__init__()
        self.reached = threading.Event()
        self._awaited = awaited

    def hedged(self) -> None:
        super().hedged()
        if self.num_hedges == self._awaited:
            self.reached.set()


@pytest.fixture(params=["streams", "calls"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[list[ScriptedServicer], str]]:
    """Two replicas, and the list of their addresses."""
    with ExitStack() as opened:
        servers = [opened.enter_context(serving(contrast_logits)) for _ in range(2)]
        for servicer, _ in servers:
            servicer.has_streams = request.param == "streams"
        yield [servicer for servicer, _ in servers], ",".join(target for _, target in servers)


def config_with(hedge: HedgePolicy | None, attempts: int = 1) -> ClientConfig:
    return ClientConfig(deadline_s=PATIENCE_S, hedge=hedge, retry=RetryPolicy(attempts=attempts))


def numbered(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((2, 3, 8, 8), i % 256, dtype=torch.uint8), torch.full((2,), i)) for i in range(count)]


def warm_up(remote: RemoteMixer, count: int = WARM_UP) -> None:
    for _ in range(count):
        remote.mix(IMAGES, seed=1)


def hold(*servicers: ScriptedServicer) -> None:
    for servicer in servicers:
        servicer.stalls = lambda _call: True


def hedged_mix(remote: RemoteMixer, servicers: list[ScriptedServicer]) -> PendingMix:
    """Submit a mix that both replicas hold."""
    hold(*servicers)
    pending = remote.submit(IMAGES, plan=PLAN)
    assert all(servicer.wait_until(lambda s: len(s.active) == 1) for servicer in servicers)
    return pending


def test_a_slow_replica_costs_little(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A mix at a replica that is slow is answered by the other one, and the slow one is told to drop it."""
    servicers, targets = pair
    tally = Tally()

    with connect(targets, config=config_with(OFTEN), observer=tally) as remote:
        warm_up(remote)
        hold(servicers[0])
        mixed = [remote.mix(IMAGES, seed=1) for _ in range(2)]
        dropped = servicers[0].wait_until(lambda servicer: not servicer.active)

    assert torch.equal(mixed[0].images, mixed[1].images)
    assert dropped
    assert tally.num_hedges == 1
    assert tally.retries == []
    assert OFTEN.min_delay_s < max(tally.seconds) < PATIENCE_S / 4
    assert len(tally.sent_bytes) == WARM_UP + 3


def test_a_fleet_that_is_slow_gets_little_more_work(pair: tuple[list[ScriptedServicer], str]) -> None:
    """Of many mixes that all take long, no more than the allowed share is sent twice."""
    servicers, targets = pair
    tally = HedgeTally(awaited=3)
    policy = HedgePolicy(min_delay_s=0.01, max_share=0.1)

    with connect(targets, config=config_with(policy), observer=tally) as remote:
        warm_up(remote)
        hold(*servicers)
        pending = [remote.submit(IMAGES, plan=PLAN) for _ in range(12)]
        assert tally.reached.wait(PATIENCE_S)
        for servicer in servicers:
            servicer.gate.set()
        mixed = [mix.result() for mix in pending]

    assert len(mixed) == 12
    assert tally.num_hedges == 3  # of 32


@pytest.mark.parametrize("failing", [0, 1])
def test_one_of_both_fails(pair: tuple[list[ScriptedServicer], str], failing: int) -> None:
    """A mix that is at two replicas is answered though one of them fails."""
    servicers, targets = pair
    servicers_by_turn = [servicers[failing], servicers[1 - failing]]
    tally = Tally()

    with connect(targets, config=config_with(OFTEN), observer=tally) as remote:
        warm_up(remote)
        pending = hedged_mix(remote, servicers)
        servicers_by_turn[0].faults.append(DOWN)
        servicers_by_turn[0].gate.set()
        assert servicers_by_turn[0].wait_until(lambda servicer: not servicer.active)
        servicers_by_turn[1].gate.set()
        mixed = pending.result()

    assert mixed.images.shape == IMAGES.shape
    assert tally.retries == []


def test_both_fail(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A mix that fails at both replicas fails."""
    servicers, targets = pair
    tally = Tally()

    with connect(targets, config=config_with(OFTEN), observer=tally) as remote:
        warm_up(remote)
        pending = hedged_mix(remote, servicers)
        for servicer in servicers:
            servicer.faults.append(DOWN)
            servicer.gate.set()

        with pytest.raises(MixerUnavailable, match="shutting down"):
            pending.result()

    assert tally.num_hedges == 1


def test_both_fail_and_there_are_attempts_left(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A mix that fails at both replicas is sent again, once."""
    servicers, targets = pair
    tally = Tally()

    with connect(targets, config=config_with(OFTEN, attempts=2), observer=tally) as remote:
        warm_up(remote)
        pending = hedged_mix(remote, servicers)
        for servicer in servicers:
            servicer.faults.append(DOWN)
            servicer.gate.set()
        pending.result()

    assert tally.retries == ["unavailable"]


def test_a_bad_batch_is_bad_everywhere(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A replica that refuses a batch for what it is ends the mix, though the other one has not answered."""
    servicers, targets = pair

    with connect(targets, config=config_with(OFTEN)) as remote:
        warm_up(remote)
        pending = hedged_mix(remote, servicers)
        servicers[0].faults.append(BadBatch("too large"))
        servicers[0].gate.set()

        with pytest.raises(BadBatch, match="too large"):
            pending.result()

        assert servicers[1].wait_until(lambda servicer: not servicer.active)


def test_cancelling_ends_both(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A mix at two replicas that is cancelled is dropped by both."""
    servicers, targets = pair

    with connect(targets, config=config_with(OFTEN)) as remote:
        warm_up(remote)
        pending = hedged_mix(remote, servicers)
        pending.cancel()

        assert all(servicer.wait_until(lambda s: not s.active) for servicer in servicers)


def test_every_mix_has_one_answer(pair: tuple[list[ScriptedServicer], str]) -> None:
    """While answers of both replicas race, each mix has one answer, in its place, and none is counted twice."""
    _, targets = pair
    tally = Tally()
    hasty = HedgePolicy(quantile=0.05, min_delay_s=0.0, max_share=1.0)

    with connect(targets, config=config_with(hasty, attempts=4), observer=tally) as remote:
        labels = [
            int(mixed.labels_a[0])
            for mixed in remote.stream(numbered(300), seed=1, depth=4)
            if mixed.labels_a is not None
        ]

    assert labels == list(range(300))
    assert len(tally.received_bytes) == 300
    assert tally.num_hedges > 0
    assert len(tally.sent_bytes) == 300 + tally.num_hedges + len(tally.retries)


def test_a_replica_that_is_out_gets_no_hedges(pair: tuple[list[ScriptedServicer], str]) -> None:
    """Where no other replica is up, a mix waits for the one it was sent to."""
    servicers, targets = pair
    servicers[1].faults.extend([DOWN] * 100)
    tally = Tally()
    hasty = HedgePolicy(quantile=0.05, min_delay_s=0.0, max_share=1.0)

    with connect(targets, config=config_with(hasty, attempts=2), observer=tally) as remote:
        warm_up(remote, 60)

    assert tally.num_hedges == 0


@pytest.mark.parametrize("hedge", [None, HedgePolicy(quantile=0.3, min_delay_s=0.0, max_share=1.0)])
def test_without_hedging(pair: tuple[list[ScriptedServicer], str], hedge: HedgePolicy | None) -> None:
    """Nothing is sent twice where hedging is switched off, or there is one replica."""
    _, targets = pair
    targets = targets if hedge is None else targets.split(",")[0]
    tally = Tally()

    with connect(targets, config=config_with(hedge), observer=tally) as remote:
        warm_up(remote, 60)

    assert tally.num_hedges == 0


@given(st.lists(st.booleans(), max_size=300), st.floats(0.01, 1))
def test_no_more_than_the_share(are_slow: list[bool], max_share: float) -> None:
    """At no time were more mixes sent twice than the share of those that were sent."""
    hedging = Hedging(HedgePolicy(max_share=max_share))
    num_hedges = 0

    for num_sent, is_slow in enumerate(are_slow, start=1):
        hedging.start()
        if is_slow and hedging.is_affordable:
            hedging.spend()
            num_hedges += 1

        assert num_hedges <= max_share * num_sent + 1e-6


@given(st.lists(st.floats(0, 100), min_size=20, max_size=400), st.floats(0.05, 0.95))
def test_slow_is_what_few_answers_were(times_s: list[float], quantile: float) -> None:
    """A mix is slow after at least the smallest delay, when few of the latest answers took longer."""
    hedging = Hedging(HedgePolicy(quantile=quantile, min_delay_s=1.0))
    for seconds in times_s:
        hedging.answered(seconds)

    slow_s = hedging.start()

    latest = times_s[-200:]
    assert slow_s is not None
    assert slow_s >= 1.0
    assert slow_s in (1.0, *latest)
    assert sum(seconds > slow_s for seconds in latest) <= (1 - quantile) * len(latest)


def test_nothing_is_slow_at_first() -> None:
    """Before some answers are known no mix is slow."""
    hedging = Hedging(HedgePolicy())
    for _ in range(WARM_UP - 1):
        hedging.answered(0.01)

    assert hedging.start() is None

    hedging.answered(0.01)
    assert hedging.start() == HedgePolicy().min_delay_s
