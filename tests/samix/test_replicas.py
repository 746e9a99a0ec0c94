"""Several servers of one mixer: work is spread, and what one of them does costs the others nothing."""

import logging
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch
from clocks import Clock
from scripted_server import PATIENCE_S, ScriptedServicer, Tally, contrast_logits, first_pixel, serving, start_server
from scripted_streams import HangUp
from torch import Tensor

from samix.client.attempts import Outcome
from samix.client.channel import Connection, check_targets
from samix.client.config import ClientConfig, Exchange, RetryPolicy, StreamPolicy
from samix.client.remote import RemoteMixer, connect
from samix.client.replicas import FIRST_PAUSE_S, Replicas
from samix.errors import InputError, MixerUnavailable
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.plan import generator_for, resolve_plan

IMAGES = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).remainder(256).byte()
QUICK = ClientConfig(deadline_s=PATIENCE_S, retry=RetryPolicy(initial_backoff_s=0.01))
ONCE = ClientConfig(deadline_s=PATIENCE_S, retry=RetryPolicy(attempts=1))
DOWN = MixerUnavailable("server is shutting down")


PLAN = resolve_plan(2, lam=None, partner=None, generator=generator_for(1))


@pytest.fixture
def pair() -> Iterator[tuple[list[ScriptedServicer], str]]:
    """Two replicas, and the list of their addresses."""
    with ExitStack() as opened:
        servers = [opened.enter_context(serving(contrast_logits)) for _ in range(2)]
        yield [servicer for servicer, _ in servers], ",".join(target for _, target in servers)


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.full((2, 3, 8, 8), i, dtype=torch.uint8), torch.full((2,), i)) for i in range(count)]


def ask(replicas: Replicas) -> Outcome:
    """Describe the mixer once."""
    outcome: Future[Outcome] = Future()
    _, attempt = replicas.start("GetMixer", Framed(pb.GetMixerRequest()), PATIENCE_S)
    attempt.add_done_callback(lambda done: outcome.set_result(done.outcome))
    return outcome.result(PATIENCE_S)


def several_addresses(targets: str, config: ClientConfig) -> Connection:
    """Make what a resolver makes of a name with several addresses."""
    return Connection(f"ipv4:{targets}", config)


def settings_with(config: ClientConfig) -> dict[str, Any]:
    return {"mixer": "", "version": "", "exchange": Exchange(), "config": config, "observer": Tally()}


def finish_probes(replicas: Replicas) -> None:
    for _ in range(2000):
        if not any(replica.is_probed for replica in replicas._replicas):
            return
        ask(replicas)  # takes as long as a server takes
    raise AssertionError("a probe never ended")


def mix_until(remote: RemoteMixer, condition: Callable[[], bool]) -> None:
    """Mix until something holds; each mix takes as long as a server takes."""
    for _ in range(2000):
        if condition():
            return
        remote.mix(IMAGES, seed=1)
    raise AssertionError("it never held")


def test_work_is_spread(pair: tuple[list[ScriptedServicer], str]) -> None:
    """Batches go to the replicas by turns, and come back in order."""
    servicers, targets = pair

    with connect(targets, config=QUICK) as remote:
        labels = [
            batch.labels_a[0].item() for batch in remote.stream(batches(10), seed=1) if batch.labels_a is not None
        ]

    assert labels == list(range(10))
    assert [servicer.num_calls for servicer in servicers] == [5, 5]


def test_a_killed_replica_loses_no_batch() -> None:
    """Batches under way to a replica that is killed are answered by the other one, and it alone is asked from then."""
    first, second = (ScriptedServicer(contrast_logits) for _ in range(2))
    first.stalls = lambda call: first_pixel(call) >= 2
    first_server, first_port = start_server(first)
    second_server, second_port = start_server(second)
    tally = Tally()
    with connect(f"127.0.0.1:{first_port},127.0.0.1:{second_port}", config=QUICK, observer=tally) as remote:
        stream = remote.stream(batches(30), seed=1, depth=4)
        mixed = [next(stream), next(stream)]
        first.wait_until(lambda servicer: bool(servicer.active))
        first_server.stop(0).wait()
        first.gate.set()

        mixed += stream

    second_server.stop(0).wait()
    assert [batch.labels_a[0].item() for batch in mixed if batch.labels_a is not None] == list(range(30))
    assert 1 <= len(tally.retries) <= 4  # those under way, and none of the 24 after them


def test_a_hanging_replica_loses_no_batch(pair: tuple[list[ScriptedServicer], str]) -> None:
    """Batches at a replica that hangs go to the other one in time, and later ones are not sent to it."""
    servicers, targets = pair
    servicers[0].stalls = lambda _call: True
    tally = Tally()

    with connect(targets, config=ClientConfig(deadline_s=1.0), observer=tally) as remote:
        mixed = list(remote.stream(batches(12), seed=1, depth=2))

    assert [batch.labels_a[0].item() for batch in mixed if batch.labels_a is not None] == list(range(12))
    assert set(tally.retries) == {"timeout"}
    assert servicers[0].num_calls <= 2


def test_a_replica_that_is_out_is_tried_again(
    pair: tuple[list[ScriptedServicer], str], caplog: pytest.LogCaptureFixture
) -> None:
    """A replica that failed, and then answers a small call, gets its share of the work again."""
    servicers, targets = pair
    servicers[0].faults.append(DOWN)
    first = targets.split(",")[0]

    with connect(targets, config=QUICK) as remote, caplog.at_level(logging.INFO, "samix"):
        mix_until(remote, lambda: "mixer_replica_up" in caplog.text)
        before = [servicer.num_calls for servicer in servicers]
        list(remote.stream(batches(6), seed=1))

    assert [servicer.num_calls for servicer in servicers] == [calls + 3 for calls in before]
    assert caplog.messages == [
        f"mixer_replica_down target={first} reason=mixer at {first}: {DOWN} (UNAVAILABLE)",
        f"mixer_replica_up target={first}",
    ]


def test_pauses_between_trials_double(pair: tuple[list[ScriptedServicer], str]) -> None:
    """While a replica stays out it is asked ever less often, and its calls are no concern of others."""
    servicers, targets = pair
    servicers[0].faults.extend([DOWN] * 100)
    clock = Clock(100.0)
    replicas = Replicas([Connection(target, QUICK) for target in check_targets(targets)], clock)
    answers = [ask(replicas) for _ in range(2)]
    left = []

    for seconds in (FIRST_PAUSE_S / 2, FIRST_PAUSE_S / 2, FIRST_PAUSE_S, FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        clock.now_s += seconds
        answers += [ask(replicas), ask(replicas)]
        finish_probes(replicas)
        left.append(len(servicers[0].faults))

    replicas.close()
    assert [isinstance(answer, MixerUnavailable) for answer in answers].count(True) == 1
    assert left == [99, 98, 98, 97, 96]


def test_all_replicas_out(pair: tuple[list[ScriptedServicer], str]) -> None:
    """While all replicas are out they are asked by turns, so that the first one that is back is used."""
    servicers, targets = pair
    for servicer in servicers:
        servicer.faults.extend([DOWN] * 3)

    with connect(targets, config=QUICK) as remote:
        with pytest.raises(MixerUnavailable, match="shutting down"):
            remote.mix(IMAGES, seed=1)
        mixed = remote.mix(IMAGES, seed=1)

    assert mixed.images.shape == IMAGES.shape


def test_waiting_for_the_first_replica(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A client is ready when one of its replicas is."""
    servicers, targets = pair
    servicers[0].faults.extend([DOWN] * 100)

    with connect(targets) as remote:
        info = remote.wait_ready(PATIENCE_S)

    assert info.name == "tiny"


def test_replicas_of_other_weights(pair: tuple[list[ScriptedServicer], str], caplog: pytest.LogCaptureFixture) -> None:
    """Replicas that answer with different weights are mentioned once."""
    servicers, targets = pair
    servicers[1].version = "v2"

    with connect(targets, config=QUICK) as remote, caplog.at_level(logging.WARNING, "samix"):
        list(remote.stream(batches(8), seed=1))

    assert [message.split()[0] for message in caplog.messages] == ["mixer_version_changed"]


def test_pickled_replicas(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A mixer with replicas that was used can be pickled for a spawned worker."""
    _, targets = pair
    with connect(targets, config=QUICK) as remote:
        expected = remote.mix(IMAGES, seed=1)
        with pickle.loads(pickle.dumps(remote)) as copy:
            mixed = copy.mix(IMAGES, seed=1)

    assert torch.equal(mixed.images, expected.images)


def test_a_name_is_looked_up() -> None:
    """A DNS name is connected to at whichever of its addresses answer."""
    with serving(contrast_logits) as (servicer, target):
        name = f"dns:///localhost:{target.rpartition(':')[2]}"
        with connect(name, config=QUICK) as remote:
            mixed = list(remote.stream(batches(6), seed=1))

    assert len(mixed) == 6
    assert servicer.num_calls == 6


@pytest.mark.parametrize("max_batches", [0, 2])
def test_all_addresses_of_a_name_get_work(pair: tuple[list[ScriptedServicer], str], max_batches: int) -> None:
    """Where one target has several addresses, all of them are used, and the others when one is gone.

    Plain calls go to them by turns, and so do streams, each of which carries some batches.
    """
    servicers, targets = pair
    config = replace(QUICK, streams=StreamPolicy(max_batches=max_batches))
    with RemoteMixer(Replicas([several_addresses(targets, config)]), **settings_with(config)) as remote:
        mix_until(remote, lambda: all(servicer.num_calls for servicer in servicers))
        before = [servicer.num_calls for servicer in servicers]
        for _ in range(8):
            remote.mix(IMAGES, seed=1)
        shares = [servicer.num_calls - calls for servicer, calls in zip(servicers, before, strict=True)]

        servicers[0].faults.append(DOWN)
        mixed = [remote.submit(IMAGES, plan=PLAN).result() for _ in range(4)]

    assert shares == [4, 4]
    assert len(mixed) == 4


@pytest.mark.parametrize("end", [HangUp(grpc.StatusCode.UNAVAILABLE), HangUp(grpc.StatusCode.OK)])
def test_a_stream_that_ends_costs_no_batch(
    pair: tuple[list[ScriptedServicer], str], end: HangUp, caplog: pytest.LogCaptureFixture
) -> None:
    """Batches on a stream that a replica ends, with whatever status, are answered by the other replica."""
    servicers, targets = pair
    servicers[0].faults.append(end)
    tally = Tally()

    with connect(targets, config=QUICK, observer=tally) as remote, caplog.at_level(logging.WARNING, "samix"):
        labels = [
            batch.labels_a[0].item() for batch in remote.stream(batches(12), seed=1) if batch.labels_a is not None
        ]

    assert labels == list(range(12))
    assert set(tally.retries) == {"unavailable"}
    assert [message.split()[0] for message in caplog.messages] == ["mixer_replica_down"]


def test_closing_ends_all(pair: tuple[list[ScriptedServicer], str]) -> None:
    """A closed client calls no replica."""
    _, targets = pair
    remote = connect(targets, config=ONCE)
    remote.mix(IMAGES, seed=1)

    remote.close()

    for _ in range(2):
        with pytest.raises(Exception, match="closed"):
            remote.submit(IMAGES, plan=PLAN)


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        ("a:1,", "unix:///path, got ''"),
        ("a:1, b:1", "got ' b:1'"),
        ("a:1,b", "got 'b'"),
        ("a:1,b:2,a:1", "each replica must be named once, got 'a:1,b:2,a:1'"),
    ],
)
def test_malformed_lists(targets: str, sentence: str) -> None:
    """A list with something that is no address, or one twice, is refused with the value."""
    with pytest.raises(InputError, match=sentence):
        connect(targets)
