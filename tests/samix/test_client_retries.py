"""What a client does when its server is slow, gone, restarted or overloaded."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import torch
from scripted_server import ScriptedServicer, Tally, contrast_logits, first_pixel, serving, start_server
from scripted_streams import HangUp

from samix.client.config import ClientConfig, HedgePolicy, RetryPolicy
from samix.client.remote import connect
from samix.errors import (
    BadBatch,
    ConfigError,
    MixerBroken,
    MixerCancelled,
    MixerError,
    MixerNotFound,
    MixerOverloaded,
    MixerTimeout,
    MixerUnavailable,
)
from samix.mixing.plan import generator_for, resolve_plan

IMAGES = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).remainder(256).byte()
QUICK = ClientConfig(deadline_s=20, retry=RetryPolicy(initial_backoff_s=0.01))
DOWN = MixerUnavailable("server is shutting down")


@pytest.fixture(params=["streams", "calls"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[ScriptedServicer, str]]:
    """A server with streams, or one of before there were any."""
    with serving(contrast_logits) as servicer_and_target:
        servicer_and_target[0].has_streams = request.param == "streams"
        yield servicer_and_target


def test_retries_work_for_large_batches(running: tuple[ScriptedServicer, str]) -> None:
    """A batch of 9.6 MB is sent again after UNAVAILABLE, and every attempt is counted."""
    servicer, target = running
    servicer.faults.extend([DOWN, DOWN, DOWN])
    images = torch.randint(256, (64, 3, 224, 224), dtype=torch.uint8, generator=generator_for("pixels"))
    tally = Tally()

    with connect(target, config=QUICK, observer=tally) as remote:
        mixed = remote.mix(images, seed=1)

    assert mixed.images.shape == images.shape
    assert servicer.num_calls == 4
    assert tally.retries == ["unavailable"] * 3
    assert len(tally.sent_bytes) == 4
    assert min(tally.sent_bytes) > 9_600_000


def test_a_stream_that_breaks_under_a_large_batch(running: tuple[ScriptedServicer, str]) -> None:
    """A batch of 9.6 MB whose stream, or call, breaks is sent again, and its mix is that of the exact pixels."""
    servicer, target = running
    servicer.faults.append(HangUp(grpc.StatusCode.UNAVAILABLE))
    images = torch.randint(256, (64, 3, 224, 224), dtype=torch.uint8, generator=generator_for("pixels"))

    with connect(target, config=QUICK) as remote:
        after, undisturbed = (remote.mix(images, seed=1) for _ in range(2))

    assert servicer.num_calls == 3
    assert torch.equal(after.images, undisturbed.images)


def test_a_mix_that_the_server_cancels_is_sent_again(running: tuple[ScriptedServicer, str]) -> None:
    """CANCELLED that nobody here asked for, as a server stopped at once answers, costs an attempt and not the batch."""
    servicer, target = running
    servicer.faults.append(grpc.StatusCode.CANCELLED)

    with connect(target, config=QUICK) as remote:
        remote.mix(IMAGES, seed=1)

    assert servicer.num_calls == 2


def test_attempts_are_limited(running: tuple[ScriptedServicer, str]) -> None:
    """After the last attempt the error of the server is raised, with its address."""
    servicer, target = running
    servicer.faults.extend([DOWN] * 9)

    with (
        connect(target, config=QUICK) as remote,
        pytest.raises(MixerUnavailable, match=f"{target}: server is shutting"),
    ):
        remote.mix(IMAGES, seed=1)

    assert servicer.num_calls == QUICK.retry.attempts


def test_retries_run_in_the_background(running: tuple[ScriptedServicer, str]) -> None:
    """A mix that failed at first is answered before anybody asks for its result."""
    servicer, target = running
    servicer.faults.append(DOWN)
    tally = Tally()

    with connect(target, config=QUICK, observer=tally) as remote:
        plan = resolve_plan(2, lam=None, partner=None, generator=generator_for(1))
        pending = remote.submit(IMAGES, plan=plan)

        assert tally.first_answer.wait(20)
        assert pending.result().labels_a is None


def test_overload_waits_as_told(running: tuple[ScriptedServicer, str]) -> None:
    """An overloaded server is asked again when its RetryInfo says so, however often."""
    servicer, target = running
    servicer.faults.extend([MixerOverloaded("queue is full", retry_after_s=0.05)] * 6)
    tally = Tally()

    with connect(target, config=QUICK, observer=tally) as remote:
        remote.mix(IMAGES, seed=1)

    assert tally.retries == ["overloaded"] * 6
    assert tally.seconds[0] >= 6 * 0.05


def test_overload_beyond_the_deadline(running: tuple[ScriptedServicer, str]) -> None:
    """An overload that would outlast the deadline is raised at once, with the time to wait."""
    servicer, target = running
    servicer.faults.append(MixerOverloaded("queue is full", retry_after_s=60))

    with connect(target, config=QUICK) as remote, pytest.raises(MixerOverloaded, match="queue is full") as caught:
        remote.mix(IMAGES, seed=1)

    assert caught.value.retry_after_s == 60


def test_deadline_covers_all_attempts(running: tuple[ScriptedServicer, str]) -> None:
    """Attempts and pauses together end at the deadline of the mix."""
    servicer, target = running
    servicer.faults.append(DOWN)
    servicer.stalls = lambda _call: not servicer.faults
    config = ClientConfig(deadline_s=1.0, retry=RetryPolicy(initial_backoff_s=0.05))

    with connect(target, config=config) as remote, pytest.raises(MixerTimeout, match="DEADLINE_EXCEEDED"):
        remote.mix(IMAGES, seed=1)

    assert servicer.num_calls == 2


def test_a_raising_observer_hangs_nobody(running: tuple[ScriptedServicer, str]) -> None:
    """An observer that raises costs the mix, not the program; the caller hears it if the answer was there at once."""

    class Raising(Tally):
        def received(self, num_bytes: int, seconds: float) -> None:
            raise OverflowError(num_bytes, seconds)

    _, target = running
    config = ClientConfig(deadline_s=0.5)

    with connect(target, config=config, observer=Raising()) as remote, pytest.raises((MixerTimeout, OverflowError)):
        remote.mix(IMAGES, seed=1)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
def test_every_status_becomes_our_error(running: tuple[ScriptedServicer, str], code: grpc.StatusCode) -> None:
    """Whatever status a server answers, the caller meets a MixerError that names it."""
    servicer, target = running
    servicer.faults.extend([code] * 9)

    with connect(target, config=QUICK) as remote, pytest.raises(MixerError, match=f"as told \\({code.name}\\)"):
        remote.mix(IMAGES, seed=1)


@pytest.mark.parametrize(
    "error",
    [
        BadBatch("lam must lie in [0, 1], got 2"),
        MixerNotFound("no mixer 'änderung' here"),
        DOWN,
        MixerOverloaded("queue is full", retry_after_s=30.25),
        MixerTimeout("waited 5 s in the queue"),
        MixerCancelled("gave up"),
        MixerBroken("out of memory"),
    ],
)
def test_our_errors_cross_the_wire(running: tuple[ScriptedServicer, str], error: MixerError) -> None:
    """An error raised on the server is the same error, with its sentence, on the client."""
    servicer, target = running
    servicer.faults.extend([error] * 9)

    with connect(target, config=QUICK) as remote, pytest.raises(MixerError) as caught:
        remote.mix(IMAGES, seed=1)

    assert type(caught.value) is type(error)
    assert str(error) in str(caught.value)
    assert getattr(caught.value, "retry_after_s", None) == getattr(error, "retry_after_s", None)


def test_nobody_there() -> None:
    """A server that is not there is MixerUnavailable with its address, well before the deadline."""
    servicer = ScriptedServicer(contrast_logits)
    server, port = start_server(servicer)
    server.stop(0).wait()

    with connect(f"127.0.0.1:{port}", config=QUICK) as remote, pytest.raises(MixerUnavailable, match=f":{port}"):
        remote.mix(IMAGES, seed=1)


def test_restarted_server_is_used_again() -> None:
    """A mix that meets a dead server is answered by the one that takes its place on the same port."""
    servicer = ScriptedServicer(contrast_logits)
    server, port = start_server(servicer)
    tally = Tally()
    config = ClientConfig(deadline_s=20, retry=RetryPolicy(attempts=100, initial_backoff_s=0.05, max_backoff_s=0.2))
    with connect(f"127.0.0.1:{port}", config=config, observer=tally) as remote:
        before = remote.mix(IMAGES, seed=1)
        server.stop(0).wait()
        plan = resolve_plan(2, lam=None, partner=None, generator=generator_for(1))
        pending = remote.submit(IMAGES, plan=plan)
        assert tally.first_retry.wait(20)

        server, _ = start_server(servicer, port)
        after = pending.result()

    server.stop(0).wait()
    assert torch.equal(before.images, after.images)


def test_stream_survives_a_killed_server() -> None:
    """A stream whose server dies with batches under way goes on with the next server, and loses none."""
    servicer = ScriptedServicer(contrast_logits)
    servicer.stalls = lambda call: first_pixel(call) >= 2
    server, port = start_server(servicer)
    batches = [(torch.full((2, 3, 8, 8), i, dtype=torch.uint8), torch.full((2,), i)) for i in range(6)]
    tally = Tally()
    config = ClientConfig(deadline_s=20, retry=RetryPolicy(attempts=100, initial_backoff_s=0.05, max_backoff_s=0.2))
    with connect(f"127.0.0.1:{port}", config=config, observer=tally) as remote:
        stream = remote.stream(batches, seed=1, depth=2)
        mixed = [next(stream), next(stream)]
        servicer.wait_until(lambda s: len(s.active) == 2)
        server.stop(0).wait()
        servicer.gate.set()
        assert tally.first_retry.wait(20)

        server, _ = start_server(servicer, port)
        mixed += stream

    server.stop(0).wait()
    assert [batch.labels_a[0].item() for batch in mixed if batch.labels_a is not None] == list(range(6))


def test_close_during_a_pause(running: tuple[ScriptedServicer, str]) -> None:
    """Closing a mixer that waits to send again ends the wait as cancelled."""
    servicer, target = running
    servicer.faults.append(MixerOverloaded("queue is full", retry_after_s=0.3))
    tally = Tally()
    remote = connect(target, config=QUICK, observer=tally)
    plan = resolve_plan(2, lam=None, partner=None, generator=generator_for(1))
    pending = remote.submit(IMAGES, plan=plan)
    assert tally.first_retry.wait(20)

    remote.close()

    with pytest.raises(MixerCancelled, match="closed"):
        pending.result()


def test_closing_twice_from_several_threads(running: tuple[ScriptedServicer, str]) -> None:
    """A mixer may be closed again, and by several threads at once; all mixes under way end as cancelled."""
    servicer, target = running
    others = threading.enumerate()
    servicer.stalls = lambda _call: True
    remote = connect(target, config=QUICK)
    plan = resolve_plan(2, lam=None, partner=None, generator=generator_for(1))
    pending = [remote.submit(IMAGES, plan=plan) for _ in range(4)]
    servicer.wait_until(lambda s: len(s.active) == 4)

    with ThreadPoolExecutor(4) as threads:
        closings = [threads.submit(remote.close) for _ in range(8)]
    remote.close()

    assert [closing.exception() for closing in closings] == [None] * 8
    for mix in pending:
        with pytest.raises(MixerCancelled):
            mix.result()
    begun = set(threading.enumerate()) - set(others)
    assert not [thread for thread in begun if thread.name == "mixer-timers"]


def test_wait_ready_outlasts_a_start() -> None:
    """A client may wait for a server that starts after it."""
    servicer = ScriptedServicer(contrast_logits)
    server, port = start_server(servicer)
    server.stop(0).wait()
    tally = Tally()
    with connect(f"127.0.0.1:{port}", observer=tally) as remote:
        threads_answer = []
        waiting = threading.Thread(target=lambda: threads_answer.append(remote.wait_ready(20)))
        waiting.start()
        assert tally.first_retry.wait(20)

        server, _ = start_server(servicer, port)
        waiting.join()

    server.stop(0).wait()
    assert [info.name for info in threads_answer] == ["tiny"]


def test_wait_ready_gives_up(running: tuple[ScriptedServicer, str]) -> None:
    """Waiting ends with what the server last said when the time is over, and at once for an unknown name."""
    servicer, target = running
    servicer.faults.extend([MixerUnavailable("mixer tiny warms up")] * 100)

    with connect(target) as remote, pytest.raises(MixerUnavailable, match="warms up"):
        remote.wait_ready(1.2)

    servicer.faults.clear()
    with connect(target, mixer="huge") as remote, pytest.raises(MixerNotFound, match="there is: tiny"):
        remote.wait_ready(20)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: RetryPolicy(attempts=0), "attempts must be at least 1, got 0"),
        (lambda: RetryPolicy(initial_backoff_s=0), "got 0 s"),
        (lambda: RetryPolicy(initial_backoff_s=2, max_backoff_s=1), "2 s, 2.0 and 1 s"),
        (lambda: RetryPolicy(factor=0.5), "0.5"),
        (lambda: HedgePolicy(quantile=1), "hedge.quantile must lie between 0 and 1, got 1"),
        (lambda: HedgePolicy(min_delay_s=-1), "hedge.min_delay_s must be at least 0, got -1"),
        (lambda: HedgePolicy(max_share=0), "got 0; to send nothing twice, hedge=None"),
        (lambda: ClientConfig(deadline_s=-1), "deadline_s must be positive and finite, got -1"),
        (lambda: ClientConfig(max_message_bytes=0), "max_message_bytes must be positive and finite, got 0"),
    ],
)
def test_impossible_settings(make, sentence: str) -> None:
    """A setting that cannot work is refused by name and value."""
    with pytest.raises(ConfigError, match=sentence):
        make()
