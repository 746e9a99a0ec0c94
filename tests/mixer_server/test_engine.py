"""The engine, with passes that do as they are told. Real ones are in test_passes.py and test_failures.py."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Queue

import numpy as np
import pytest
from queueing import MIXER, make_job

from mixer_server.engine.answers import Outcome
from mixer_server.engine.engine import Engine, warm_up
from mixer_server.engine.passes import DeviceLost
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.batcher import Batcher, BatchingConfig
from mixer_server.scheduling.job import Job
from samix.errors import BadBatch, MixerBroken, MixerUnavailable
from samix.mixing.frozen import FrozenMixer
from samix.wire import MixCall, MixReply
from services.metrics import make_registry

WAIT_S = 10.0


def outcome_of(call: MixCall) -> Outcome:
    logits = np.zeros((len(call.pixels), 1, 1, 1), np.float16)
    reply = MixReply(mixer="m", version="v", rendering=MIXER.spec.rendering, mask_logits=logits)
    return Outcome(reply=reply, num_nonfinite=0, lambda_error=0.0)


class Told:
    """A pass that is finished when it is told to be, with an error if one is given."""

    def __init__(self, calls: Sequence[MixCall], error: BaseException | None) -> None:
        self.calls = calls
        self._error = error
        self.may_finish = threading.Event()

    def finish(self) -> list[Outcome]:
        assert self.may_finish.wait(WAIT_S), "nobody let the pass finish"
        if self._error:
            raise self._error
        return [outcome_of(call) for call in self.calls]


class ToldPasses:
    """Passes that note what happens to them."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.errors: deque[BaseException] = deque()
        """What the first passes end with."""
        self.launched: Queue[Told] = Queue()
        self.warmed: list[int] = []

    def prepare(self, mixer: FrozenMixer, call: MixCall) -> MixCall:  # noqa: ARG002
        return call

    def warm(self, mixer: FrozenMixer, side: int) -> None:  # noqa: ARG002
        self.warmed.append(side)

    def launch(self, mixer: FrozenMixer, calls: Sequence[MixCall]) -> Told:  # noqa: ARG002
        told = Told(calls, self.errors.popleft() if self.errors else None)
        self.launched.put(told)
        return told

    def close(self) -> None:
        pass

    def next_launched(self) -> Told:
        return self.launched.get(timeout=WAIT_S)


class Bench:
    """An engine whose passes hold one image, with requests that wait for it."""

    def __init__(self, depth: int, num_jobs: int, *errors: BaseException, num_lanes: int) -> None:
        self.passes = ToldPasses(depth)
        self.passes.errors.extend(errors)
        self.batcher = Batcher(BatchingConfig(max_images=1), num_lanes=num_lanes)
        self.died = threading.Semaphore(0)
        self.engine = Engine(self.batcher, self.passes, MixerMetrics(make_registry()), on_death=self.died.release)
        self.jobs = [make_job() for _ in range(num_jobs)]
        for job in self.jobs:
            self.batcher.submit(job)


@contextmanager
def bench_of(depth: int, num_jobs: int, *errors: BaseException, num_lanes: int = 1) -> Iterator[Bench]:
    bench = Bench(depth, num_jobs, *errors, num_lanes=num_lanes)
    bench.engine.start()
    yield bench
    bench.batcher.close()
    assert bench.engine.join(WAIT_S)


def error_of(job: Job) -> BaseException | None:
    return job.answer.exception(WAIT_S)


def test_the_next_pass_starts_before_the_last_is_over():
    """While a pass is under way the next is launched, and no more than the passes allow."""
    with bench_of(2, 3) as bench:
        first, second, third = bench.jobs
        one, two = bench.passes.next_launched(), bench.passes.next_launched()

        is_empty = bench.passes.launched.empty()
        one.may_finish.set()
        answer = first.answer.result(WAIT_S)
        three = bench.passes.next_launched()

        assert is_empty
        assert answer
        assert not second.answer.done()
        for told in (two, three):
            told.may_finish.set()
        assert third.answer.result(WAIT_S)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_answer_does_not_wait_for_the_next_request(depth: int):
    """A pass is finished although nothing else comes, however many may be under way."""
    with bench_of(depth, 1) as bench:
        bench.passes.next_launched().may_finish.set()

        assert bench.jobs[0].answer.result(WAIT_S).mask_logits.shape == (1, 1, 1, 1)


def test_closing_finishes_what_is_under_way():
    """An engine whose batcher is closed answers all it has, then ends."""
    with bench_of(3, 2) as bench:
        told = [bench.passes.next_launched() for _ in bench.jobs]

        bench.batcher.close()
        for one in told:
            one.may_finish.set()

        assert bench.engine.join(WAIT_S)
        assert all(job.answer.result(0) for job in bench.jobs)
        assert not bench.died.acquire(blocking=False)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_failed_pass_fails_only_its_requests(depth: int, caplog: pytest.LogCaptureFixture):
    """A pass that fails when it is finished is told to its callers and logged; the next one is answered."""
    with bench_of(depth, 2, RuntimeError("no luck")) as bench:
        failed, answered = bench.jobs

        for _ in bench.jobs:
            bench.passes.next_launched().may_finish.set()

        assert isinstance(error_of(failed), MixerBroken)
        assert answered.answer.result(WAIT_S)
        assert "pass_failed" in caplog.messages


@pytest.mark.parametrize("error", [DeviceLost("the GPU fell off the bus"), SystemExit("a bug")])
def test_death_leaves_nobody_waiting(error: BaseException, caplog: pytest.LogCaptureFixture):
    """When nothing more can be computed, those under way and in the queue are told, newcomers and the server too."""
    with bench_of(2, 5, error) as bench:
        bench.passes.next_launched().may_finish.set()

        assert all(isinstance(error_of(job), MixerBroken) for job in bench.jobs)
        assert bench.died.acquire(timeout=WAIT_S)
        assert "engine_died" in caplog.messages
        with pytest.raises(MixerUnavailable):
            bench.batcher.submit(make_job())


def test_lanes_compute_at_once():
    """With two lanes two passes are under way, whichever ends first; the third begins when a lane comes free."""
    with bench_of(1, 3, num_lanes=2) as bench:
        first, second, third = bench.jobs
        under_way = [bench.passes.next_launched(), bench.passes.next_launched()]
        is_empty = bench.passes.launched.empty()
        next(told for told in under_way if told.calls[0] is second.call).may_finish.set()

        answer = second.answer.result(WAIT_S)
        last = bench.passes.next_launched()

        assert is_empty
        assert answer
        assert not first.answer.done()
        for told in (*under_way, last):
            told.may_finish.set()
        assert first.answer.result(WAIT_S)
        assert third.answer.result(WAIT_S)


def test_a_lane_that_dies_stops_all(caplog: pytest.LogCaptureFixture):
    """When one lane can compute no more, what another has under way is answered and the rest refused; told once."""
    with bench_of(1, 5, SystemExit("a bug"), SystemExit("a bug"), num_lanes=2) as bench:
        for _ in range(2):
            bench.passes.next_launched().may_finish.set()

        assert all(isinstance(error_of(job), MixerBroken) for job in bench.jobs)
        assert bench.engine.join(WAIT_S)
        assert bench.died.acquire(blocking=False)
        assert not bench.died.acquire(blocking=False)
        assert caplog.messages.count("engine_died") == 2


def test_warm_up_goes_through_the_passes():
    """What is warmed up is what computes real requests, at the size that was asked for."""
    passes = ToldPasses(1)

    with ThreadPoolExecutor(1) as elsewhere:
        warm = elsewhere.submit(warm_up, passes, MIXER, 24)
        passes.next_launched().may_finish.set()
        warm.result(WAIT_S)

    assert passes.warmed == [24]
    assert passes.launched.empty()


def test_warm_up_refuses_sizes_first():
    """A size that the mixer does not take is refused before anything is compiled for it."""
    passes = ToldPasses(1)

    with pytest.raises(BadBatch, match="images are 4 x 4"):
        warm_up(passes, MIXER, 4)

    assert not passes.warmed
