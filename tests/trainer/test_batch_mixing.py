"""One batch in is one batch out, in order, whatever the mixer does."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from serving import WAIT_S, Gate, serve, tiny_mixer
from torch import Tensor
from training import SIDE, images_mixed, make_batch

from mixer_server.app import MixerServer
from samix.client.config import ClientConfig, Exchange, RetryPolicy
from samix.client.remote import RemoteMixer, connect
from samix.errors import BadBatch, MixerNotFound
from samix.mixing.policies import cutmix, no_mixing
from services.shards.dataset import Batch
from trainer.exchanges import Trial
from trainer.fallback import Breaker, BudgetSpent, FailureBudget
from trainer.metrics import TrainerMetrics
from trainer.prefetch import BatchMixing, InProcessMixing, PlanSeed, Prepared, RemoteMixing

CPU = torch.device("cpu")
PLANS = PlanSeed(run_seed=3, rank=0, alpha=2.0, per_sample=False)
BATCH_BYTES = 4 * 3 * SIDE * SIDE
HURRIED = ClientConfig(deadline_s=0.3, retry=RetryPolicy(attempts=1))
IMPATIENT = ClientConfig(deadline_s=WAIT_S, retry=RetryPolicy(attempts=1))


class Eager(Breaker):
    """A breaker whose clock leaps beyond any pause between two readings, so that every batch is sent."""

    def __init__(self) -> None:
        self._time = 0.0
        super().__init__(self._leap)

    def _leap(self) -> float:
        self._time += 1000.0
        return self._time


class Rank:
    """A `RemoteMixing` with what it reports to."""

    def __init__(
        self,
        remote: RemoteMixer,
        metrics: TrainerMetrics,
        depth: int,
        budget: int,
        breaker: Breaker,
        *,
        max_bytes_in_flight: int = 1 << 30,
    ) -> None:
        self.metrics = metrics
        self.mixing = RemoteMixing(
            remote,
            fallback=no_mixing(),
            plans=PLANS,
            depth=depth,
            max_bytes_in_flight=max_bytes_in_flight,
            trial=Trial([Exchange()], rank=0),
            breaker=breaker,
            budget=FailureBudget(budget, "the server"),
            device=CPU,
            metrics=metrics,
        )

    def labels(self, batches: Iterable[Batch], epoch: int = 0) -> list[int]:
        """Mix an epoch; the label tells which batch became which mixed batch."""
        return [label_of(item) for item in self.mixing.epoch(epoch, batches)]

    @property
    def fallbacks(self) -> float:
        return self.metrics.value("mixer_client_fallback_total")


@contextmanager
def rank_of(
    target: str,
    *,
    mixer: str = "",
    depth: int = 3,
    budget: int = 100,
    breaker: Breaker | None = None,
    max_bytes_in_flight: int = 1 << 30,
    config: ClientConfig = IMPATIENT,
) -> Iterator[Rank]:
    metrics = TrainerMetrics(0)
    with connect(target, mixer=mixer, config=config, observer=metrics) as remote:
        yield Rank(remote, metrics, depth, budget, breaker or Breaker(), max_bytes_in_flight=max_bytes_in_flight)


def label_of(item: Prepared) -> int:
    assert item.mixed.labels_a is not None
    return int(item.mixed.labels_a[0])


def numbered(count: int) -> list[Batch]:
    return [make_batch(value=number) for number in range(count)]


def address(server: MixerServer) -> str:
    return server.addresses["grpc"]


def random_batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (6, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    return Batch(images=images, labels=torch.arange(6), positions=torch.arange(6))


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_plans_differ_by_epoch_step_and_rank(other: tuple[int, int, int]):
    """Epoch, step and rank each change the plan of a batch."""
    epoch, step, rank = other

    plan = replace(PLANS, rank=rank).plan(epoch, step, 64)

    assert not torch.equal(plan.partner, PLANS.plan(0, 0, 64).partner)
    assert replace(PLANS, rank=rank).seed(epoch, step) != PLANS.seed(0, 0)


def test_plans_are_repeated_exactly():
    """The same run seed, epoch, step and rank draw the same plan, and another run seed another."""
    first, second = (PLANS.plan(2, 5, 64) for _ in range(2))
    other = replace(PLANS, run_seed=4).plan(2, 5, 64)

    assert torch.equal(first.partner, second.partner)
    assert torch.equal(first.lam, second.lam)
    assert not torch.equal(first.partner, other.partner)


def test_one_lam_for_each_image():
    """With per_sample each image has a lam of its own; without, the batch shares one."""
    apart = replace(PLANS, per_sample=True).plan(0, 0, 16)
    shared = PLANS.plan(0, 0, 16)

    assert len(apart.lam.unique()) == 16
    assert len(shared.lam.unique()) == 1


def test_remote_and_local_make_the_same_batches(server: MixerServer):
    """A run mixes the same batches whether its mixer is on a server or in this process."""
    batches = [random_batch(seed) for seed in range(4)]
    local = InProcessMixing(tiny_mixer(), PLANS, CPU, TrainerMetrics(0))

    with rank_of(address(server)) as rank:
        there = list(rank.mixing.epoch(1, batches))

    for item, expected, batch in zip(there, local.epoch(1, batches), batches, strict=True):
        assert torch.equal(item.mixed.lam, expected.mixed.lam)
        torch.testing.assert_close(item.mixed.masks, expected.mixed.masks, atol=1e-3, rtol=0)
        torch.testing.assert_close(item.mixed.images, expected.mixed.images, atol=1e-3, rtol=0)
        assert torch.equal(item.clean, batch.images)
        assert torch.equal(expected.clean, batch.images)


def test_in_process_policies_need_no_server():
    """A hand-crafted policy mixes every batch of the epoch in order, the same way when it is repeated."""
    batches = [random_batch(seed) for seed in range(3)]
    mixing = InProcessMixing(cutmix(), PLANS, CPU, TrainerMetrics(0))

    first, second = (list(mixing.epoch(0, batches)) for _ in range(2))

    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.mixed.images, other.mixed.images)


def test_order_is_kept(server: MixerServer):
    """Mixed batches come in the order of the batches, each once, and no fallback is needed."""
    with rank_of(address(server)) as rank:
        labels = rank.labels(numbered(9))

    assert labels == list(range(9))
    assert rank.fallbacks == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_epochs_shorter_than_depth(server: MixerServer, count: int):
    """An epoch with fewer batches than may be under way yields all of them."""
    with rank_of(address(server), depth=4) as rank:
        labels = rank.labels(numbered(count))

    assert labels == list(range(count))


@pytest.mark.parametrize("depth", [1, 3])
def test_depth_batches_are_under_way_during_a_step(server: MixerServer, depth: int):
    """While a step runs, exactly `depth` batches beyond it were taken from the loader and sent."""
    taken: list[int] = []

    def batches() -> Iterator[Batch]:
        for batch in numbered(8):
            taken.append(len(taken))
            yield batch

    with rank_of(address(server), depth=depth) as rank:
        ahead = [len(taken) - 1 - label_of(item) for item in rank.mixing.epoch(0, batches())]

    assert ahead == [min(depth, 7 - step) for step in range(8)]


@pytest.mark.parametrize(("credit", "sent"), [(1, 1), (BATCH_BYTES, 1), (BATCH_BYTES + 1000, 2), (1 << 30, 4)])
def test_credit_limits_what_is_under_way(credit: int, sent: int):
    """Nothing more is sent while the credit is in use; one batch always may be, and no more than `depth` allows."""
    mixer = tiny_mixer()
    gate = Gate(mixer)
    with serve(mixer) as server, rank_of(address(server), depth=3, config=HURRIED, max_bytes_in_flight=credit) as rank:
        gate.shut()

        epoch = rank.mixing.epoch(0, numbered(8))
        first = next(epoch)  # by the fallback: no batch is answered

        assert label_of(first) == 0
        assert sent <= rank.metrics.value("mixer_client_sent_bytes_total") / BATCH_BYTES < sent + 0.5
        assert sent <= rank.metrics.value("mixer_client_in_flight_bytes") / BATCH_BYTES < sent + 0.5
        epoch.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
        gate.open()


def test_little_credit_costs_no_step(server: MixerServer):
    """With credit for one batch every batch is mixed by the server, in order."""
    with rank_of(address(server), max_bytes_in_flight=1) as rank:
        labels = rank.labels(numbered(6))

    assert labels == list(range(6))
    assert rank.fallbacks == 0
    assert rank.metrics.value("mixer_client_in_flight_bytes") == 0


@pytest.mark.parametrize("first_batch", [1, 4])
def test_resumed_epochs_draw_the_same_plans(server: MixerServer, first_batch: int):
    """The rest of an epoch is mixed as it would have been in the whole one: remote, in process and by the fallback."""
    batches = [random_batch(seed) for seed in range(6)]
    for target in (address(server), "127.0.0.1:1"):
        with rank_of(target) as rank:
            check_rest(rank.mixing, batches, first_batch)
    check_rest(InProcessMixing(cutmix(), PLANS, CPU, TrainerMetrics(0)), batches, first_batch)


def check_rest(mixing: BatchMixing[Prepared], batches: list[Batch], first_batch: int) -> None:
    whole = list(mixing.epoch(2, batches))
    rest = list(mixing.epoch(2, batches[first_batch:], first_batch=first_batch))

    for one, other in zip(whole[first_batch:], rest, strict=True):
        torch.testing.assert_close(one.mixed.images, other.mixed.images, atol=1e-3, rtol=0)
        torch.testing.assert_close(one.mixed.lam, other.mixed.lam, rtol=0, atol=0)


def test_a_stopped_replica_costs_no_fallback():
    """Of two servers one stops in mid-epoch: every batch is mixed by the other, and the fallback by none."""
    with serve(tiny_mixer()) as first, serve(tiny_mixer()) as second:

        def batches() -> Iterator[Batch]:
            for number, batch in enumerate(numbered(40)):
                if number == 12:
                    first.stop()
                yield batch

        with rank_of(f"{address(first)},{address(second)}", config=ClientConfig(deadline_s=WAIT_S)) as rank:
            labels = rank.labels(batches())
        shares = [images_mixed(server) / 4 for server in (first, second)]

    assert labels == list(range(40))
    assert rank.fallbacks == 0
    assert shares[0] == pytest.approx(6, abs=1)
    assert sum(shares) >= 40


def test_one_out_for_one_in_without_a_server(caplog: pytest.LogCaptureFixture):
    """Without a server the fallback mixes every batch: counted, and logged once with rank and reason."""
    with rank_of("127.0.0.1:1") as rank, caplog.at_level(logging.INFO, "trainer"):
        labels = rank.labels(numbered(7))

    assert labels == list(range(7))
    assert rank.fallbacks == 7
    assert caplog.messages == ["mixer_lost"]
    assert vars(caplog.records[0])["rank"] == 0
    assert "127.0.0.1:1" in vars(caplog.records[0])["reason"]


def test_fallback_batches_are_repeated_exactly():
    """A fallback batch depends on the seed, not on the time of the outage: it is the same in a repeated run."""
    batches = [random_batch(seed) for seed in range(3)]

    runs = []
    for _ in range(2):
        with rank_of("127.0.0.1:1") as rank:
            runs.append(list(rank.mixing.epoch(0, batches)))

    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.mixed.images, other.mixed.images)


def test_a_dead_mixer_is_not_asked_for_every_batch():
    """After a failure the batches of the pause go to the fallback without being sent."""
    with rank_of("127.0.0.1:1", depth=2) as rank:
        rank.labels(numbered(1))
        sent = rank.metrics.value("mixer_client_sent_bytes_total")

        rank.labels(numbered(5), epoch=1)

    assert sent > 0
    assert rank.metrics.value("mixer_client_sent_bytes_total") == sent


def test_a_server_that_forgets_the_mixer_is_an_outage():
    """A rollout with another mixer does not stop a run that had its answers: its batches go to the fallback."""
    metrics = TrainerMetrics(0)
    with serve(tiny_mixer()) as server:
        port = int(address(server).rpartition(":")[2])
        with connect(address(server), mixer="tiny", config=IMPATIENT, observer=metrics) as remote:
            rank = Rank(remote, metrics, 1, 100, Eager())
            rank.labels(numbered(2))
            server.stop()
            with serve(tiny_mixer("another"), grpc_port=port):
                labels = rank.labels(numbered(3))

    assert labels == [0, 1, 2]
    assert rank.fallbacks == 3


def test_a_restarted_server_is_used_again(caplog: pytest.LogCaptureFixture):
    """An outage costs fallback batches only while it lasts; a server that restarts on its port is used again."""
    metrics = TrainerMetrics(0)
    with serve(tiny_mixer()) as server:
        port = int(address(server).rpartition(":")[2])
        with connect(address(server), config=IMPATIENT, observer=metrics) as remote:
            rank = Rank(remote, metrics, 2, 100, Eager())
            before = rank.labels(numbered(4))
            server.stop()
            with caplog.at_level(logging.INFO, "trainer"):
                during = rank.labels(numbered(4))
                lost = rank.fallbacks
                with serve(tiny_mixer(), grpc_port=port) as second:
                    remote.wait_ready(WAIT_S)
                    after = rank.labels(numbered(4))
                    mixed_again = images_mixed(second)

    assert before == during == after == list(range(4))
    assert lost == rank.fallbacks == 4
    assert mixed_again == 16
    ours = [record.message for record in caplog.records if record.name == "trainer.prefetch"]
    assert ours == ["mixer_lost", "mixer_back"]


def test_the_budget_ends_an_epoch_without_a_mixer():
    """Once the fallback mixed as many batches as the budget allows, the epoch fails with the cause and the cure."""
    mixed = []

    with rank_of("127.0.0.1:1", budget=3) as rank, pytest.raises(BudgetSpent, match=r"raise --mixing\.failure-budget"):
        mixed.extend(rank.mixing.epoch(0, numbered(9)))

    assert len(mixed) == 3
    assert rank.fallbacks == 3


def test_the_budget_is_per_epoch():
    """Each epoch may spend the whole budget."""
    with rank_of("127.0.0.1:1", budget=3) as rank:
        labels = [rank.labels(numbered(3), epoch) for epoch in range(2)]

    assert labels == [[0, 1, 2]] * 2


def test_a_mixer_of_another_name_is_no_outage(server: MixerServer):
    """A name the server does not know ends the run instead of training it on fallback batches."""
    with rank_of(address(server), mixer="other") as rank, pytest.raises(MixerNotFound, match="other"):
        rank.labels(numbered(2))

    assert rank.fallbacks == 0


def test_images_the_mixer_does_not_take_are_no_outage(server: MixerServer):
    """A batch the server refuses ends the run with the server's sentence."""
    small = Batch(images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), labels=torch.zeros(2).long(), positions=Tensor())

    with rank_of(address(server)) as rank, pytest.raises(BadBatch, match="4 x 4"):
        list(rank.mixing.epoch(0, [small]))

    assert rank.fallbacks == 0


def test_closing_an_epoch_early_cancels_what_is_under_way():
    """A run that ends in the middle of an epoch leaves no request waiting on the server."""
    mixer, gate, held = tiny_mixer(), threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        held.set()
        assert gate.wait(WAIT_S), "nobody opened the gate"

    with serve(mixer) as server, rank_of(address(server), depth=3) as rank:
        epoch = rank.mixing.epoch(0, numbered(8))
        next(epoch)
        with rank_of(address(server)) as other:  # every batch of the first rank is answered before this one
            other.labels(numbered(1))
        handle = mixer.net.register_forward_pre_hook(hold)
        sent = rank.metrics.value("mixer_client_sent_bytes_total")
        next(epoch)
        assert held.wait(WAIT_S)

        epoch.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator

        assert server.front.join(WAIT_S)  # the server has noticed before the engine goes on
        gate.set()
        handle.remove()
        codes = cancelled(server)

    assert rank.metrics.value("mixer_client_sent_bytes_total") > sent
    assert codes >= 1  # two on a busy machine, where the pass that was held is not of the last batch


def cancelled(server: MixerServer) -> float:
    """Stop a server, then count the calls whose clients gave up."""
    server.stop()
    samples = (sample for family in server.metrics.registry.collect() for sample in family.samples)
    return sum(s.value for s in samples if s.name == "mixer_requests_total" and s.labels["code"] == "CANCELLED")
