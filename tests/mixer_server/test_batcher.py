import gc
import math
import threading
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from clocks import Clock
from hypothesis import given
from hypothesis import strategies as st
from queueing import make_job

from mixer_server.scheduling.batcher import Batcher, BatchingConfig
from mixer_server.scheduling.fair_queue import PRIORITIES
from mixer_server.scheduling.job import Job
from samix.errors import ConfigError, MixerOverloaded, MixerTimeout, MixerUnavailable
from samix.mixer.v1 import mixer_pb2 as pb

WAIT_S = 10.0
CONFIG = BatchingConfig(max_images=8, max_queue_images=20, max_queue_delay_s=1.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def batcher(clock: Clock) -> Batcher:
    return Batcher(CONFIG, clock)


def test_waits_for_company(batcher: Batcher, clock: Clock):
    """A request leaves with what comes within the queue delay, and no later than that."""
    early, late = make_job(), make_job()

    batcher.submit(early)
    clock.now_s = 0.75
    batcher.submit(late)
    patience = batcher.decide()
    clock.now_s = 1.0
    group = batcher.decide()

    assert patience == 0.25
    assert group == [early, late]
    assert batcher.decide() == math.inf


def test_full_group_leaves_at_once(batcher: Batcher):
    """As many images as fit into a pass do not wait for more."""
    jobs = [make_job(4), make_job(4), make_job(4)]

    for job in jobs:
        batcher.submit(job)

    assert batcher.decide() == jobs[:2]
    assert batcher.decide() == 1.0


def test_rare_size_is_not_starved(batcher: Batcher, clock: Clock):
    """Once its patience is over, a lone request goes before full groups of another size."""
    rare = make_job(1, side=9)
    batcher.submit(rare)
    clock.now_s = 1.0
    batcher.submit(make_job(8))

    group = batcher.decide()

    assert group == [rare]


def test_full_group_does_not_wait_for_a_lone_one(batcher: Batcher, clock: Clock):
    """A request that may still get company lets a full group of another size go before it."""
    lone, full = make_job(1, side=9), make_job(8)
    batcher.submit(lone)
    clock.now_s = 0.5
    batcher.submit(full)

    group = batcher.decide()

    assert group == [full]
    assert batcher.decide() == 0.5


def test_refuses_when_full(batcher: Batcher, clock: Clock):
    """A request that does not fit into the queue is refused, with the time the queue takes at its latest pace."""
    batcher.submit(make_job(8))
    batcher.next_group()
    clock.now_s = 0.8
    for _ in range(5):
        batcher.submit(make_job(4))
    batcher.next_group()
    batcher.submit(make_job(8))

    with pytest.raises(MixerOverloaded, match="20 of at most 20 images wait, no room for 1 more") as caught:
        batcher.submit(make_job(1))

    assert caught.value.retry_after_s == pytest.approx(20 * 0.1)


def test_pace_is_that_of_recent_passes(clock: Clock):
    """The hint when to come again follows the pace of the passes, large images counted as what they take."""
    batcher = Batcher(CONFIG, clock)
    for seconds in (8.0, *[0.8] * 20):
        batcher.submit(make_job(8))
        batcher.next_group()
        clock.now_s += seconds
    batcher.submit(make_job(8))
    batcher.next_group()

    batcher.submit(make_job(4, side=16))

    assert batcher.retry_after_s() == pytest.approx(4 * 4 * 0.1, rel=0.05)


def test_pace_of_two_lanes(clock: Clock):
    """Two lanes that take as long for a pass as one work a queue off in half the time."""
    batcher = Batcher(CONFIG, clock, num_lanes=2)
    for _ in range(20):
        for lane in (0, 1):
            batcher.submit(make_job(8))
            batcher.next_group(lane)
        clock.now_s += 0.8

    batcher.submit(make_job(8))

    assert batcher.retry_after_s() == pytest.approx(8 * 0.1 / 2)


def test_pace_is_known_though_a_pass_is_always_under_way(clock: Clock):
    """Where the next pass is launched before the last one has ended, the hint follows the pace of the launches."""
    batcher = Batcher(CONFIG, clock)
    for _ in range(20):
        batcher.submit(make_job(8))
        assert batcher.decide()
        clock.now_s += 0.8

    batcher.submit(make_job(8))

    assert batcher.retry_after_s() == pytest.approx(8 * 0.1)


def test_hints_are_bounded(clock: Clock):
    """A hint is no shorter than 50 ms and no longer than 5 s, whatever the pace."""
    batcher = Batcher(CONFIG, clock)
    shortest = batcher.retry_after_s()
    batcher.submit(make_job(8))
    batcher.next_group()
    clock.now_s = 1e6
    batcher.submit(make_job(8))
    batcher.next_group()
    batcher.submit(make_job(8))

    assert (shortest, batcher.retry_after_s()) == (0.05, 5.0)


def test_newcomer_is_not_locked_out(batcher: Batcher):
    """In a queue that one client has filled, another gets its share; what gives way is refused with a hint."""
    greedy = [make_job(4, client="greedy") for _ in range(5)]
    modest = [make_job(4, client="modest") for _ in range(3)]
    for job in greedy:
        batcher.submit(job)

    batcher.submit(modest[0])
    batcher.submit(modest[1])
    with pytest.raises(MixerOverloaded, match="no room for 4 more"):
        batcher.submit(modest[2])

    assert batcher.num_images == 20
    assert [job.answer.done() for job in greedy] == [False, False, False, True, True]
    with pytest.raises(MixerOverloaded, match="20 of at most 20 images wait, and this request gave way") as caught:
        greedy[4].answer.result(0)
    assert caught.value.retry_after_s > 0


def test_refusal_sends_nobody_away(batcher: Batcher):
    """A request that would not fit even if others gave way is refused, and they stay."""
    waiting = [make_job(8, client="greedy"), make_job(8, client="other")]
    for job in waiting:
        batcher.submit(job)

    with pytest.raises(MixerOverloaded):
        batcher.submit(make_job(8, client="modest"))

    assert not any(job.answer.done() for job in waiting)


def test_full_queue_lets_higher_priorities_in(batcher: Batcher):
    """A request finds room where only lower priorities wait, even of its own client."""
    low = [make_job(4, priority=pb.PRIORITY_LOW) for _ in range(5)]
    for job in low:
        batcher.submit(job)

    batcher.submit(normal := make_job(8))

    assert [job.answer.done() for job in low] == [False, False, False, True, True]
    assert batcher.decide() == [normal]


def test_drops_what_nobody_waits_for(batcher: Batcher, clock: Clock):
    """Cancelled and expired requests are not handed out and make room in the queue."""
    cancelled, expired, alive = make_job(9), make_job(9, deadline_s=0.5), make_job(9)
    batcher.submit(cancelled)
    batcher.submit(expired)
    cancelled.give_up()
    clock.now_s = 0.5

    batcher.submit(alive)
    clock.now_s = 1.5
    group = batcher.decide()

    assert group == [alive]
    with pytest.raises(MixerTimeout):
        expired.answer.result(0)


def test_cancelling_makes_room_at_once(batcher: Batcher):
    """What is cancelled is counted no longer, without anybody asking for a group."""
    kept, cancelled, early = make_job(4), make_job(3), make_job(2)
    early.give_up()
    for job in (kept, cancelled, early):
        batcher.submit(job)

    cancelled.give_up()

    assert (batcher.num_requests, batcher.num_images, batcher.num_bytes) == (1, 4, 4 * 3)


def test_pixels_are_let_go(batcher: Batcher):
    """Once a request was answered or cancelled the batcher holds nothing of it, and no cycle does."""
    gc.disable()
    try:
        computed, cancelled = make_job(8, deadline_s=60), make_job(8, deadline_s=60)
        for job in (computed, cancelled):
            batcher.submit(job)
        pixels = [weakref.ref(job.call.pixels) for job in (computed, cancelled)]

        cancelled.give_up()
        batcher.next_group()[0].settle(MixerUnavailable("as an answer"))
        del computed, cancelled, job

        assert [held() for held in pixels] == [None, None]
    finally:
        gc.enable()


def test_listeners_may_use_other_locks(clock: Clock):
    """Whoever listens to an answer may take a lock under which others submit: nobody is told under the batcher's."""
    batcher = Batcher(CONFIG, clock)
    expired = make_job(deadline_s=0.5)
    batcher.submit(expired)
    own_lock, told = threading.Lock(), threading.Event()

    def listen(_answer: Future) -> None:
        with own_lock:
            told.set()

    expired.answer.add_done_callback(listen)
    clock.now_s = 0.5
    with ThreadPoolExecutor(1) as pool, own_lock:
        decided = pool.submit(batcher.decide)
        batcher.submit(make_job())
        own_lock.release()
        is_told = told.wait(WAIT_S)
        own_lock.acquire()
        decided.result(WAIT_S)

    assert is_told


def test_asks_again_at_the_next_deadline(batcher: Batcher):
    """Whoever waits for company is woken for the first deadline, so that it is told in time."""
    for deadline_s in (math.inf, 0.75, 0.5, 0.25):
        batcher.submit(job := make_job(deadline_s=deadline_s))
    job.give_up()

    assert batcher.decide() == 0.5


def test_deadlines_of_the_past_are_swept(batcher: Batcher):
    """Requests that left long before their deadline leave nothing behind that grows, whoever waits before them."""
    batcher.submit(make_job(side=9, deadline_s=30))
    for _ in range(1000):
        batcher.submit(make_job(8, deadline_s=60))
        batcher.decide()

    assert len(batcher._deadlines) < 100


def test_closing_hands_out_what_was_accepted(batcher: Batcher):
    """After closing, accepted requests leave at once, new ones are refused, then groups are empty."""
    job = make_job()
    batcher.submit(job)

    batcher.close()

    with pytest.raises(MixerUnavailable, match="server is shutting down"):
        batcher.submit(make_job())
    assert batcher.next_group() == [job]
    assert batcher.next_group() == []


def wait_for_taker(batcher: Batcher) -> None:
    """Wait until a thread sleeps in `next_group`."""
    give_up_s = time.monotonic() + WAIT_S
    while not getattr(batcher._changed, "_waiters"):  # noqa: B009 - private to the standard library
        assert time.monotonic() < give_up_s, "nobody waits for a group"


@pytest.mark.parametrize("max_queue_delay_s", [0, 0.01])
def test_taker_wakes_up(max_queue_delay_s: float):
    """A thread that waits for a group gets it when a request comes."""
    batcher = Batcher(BatchingConfig(max_queue_delay_s=max_queue_delay_s))
    job = make_job()

    with ThreadPoolExecutor(1) as pool:
        group = pool.submit(batcher.next_group)
        wait_for_taker(batcher)
        batcher.submit(job)

        assert group.result(WAIT_S) == [job]


def test_full_pass_wakes_the_taker():
    """A thread that waits for company gets the group when the pass is full, or of a preferred size."""
    batcher = Batcher(BatchingConfig(max_images=4, preferred_images=(2,), max_queue_delay_s=3600))
    pair = [make_job(), make_job()]
    full = [make_job(3), make_job(1)]

    with ThreadPoolExecutor(1) as pool:
        for jobs in (pair, full):
            group = pool.submit(batcher.next_group)
            for job in jobs:
                wait_for_taker(batcher)
                batcher.submit(job)

            assert group.result(WAIT_S) == jobs


def test_deadline_wakes_the_taker():
    """A request that expires while the engine waits for company is told at its deadline."""
    batcher = Batcher(BatchingConfig(max_queue_delay_s=3600))
    first = make_job()

    with ThreadPoolExecutor(1) as pool:
        group = pool.submit(batcher.next_group)
        batcher.submit(first)
        wait_for_taker(batcher)
        batcher.submit(late := make_job(deadline_s=batcher.clock() + 0.05))
        error = late.answer.exception(WAIT_S)
        batcher.close()

        assert isinstance(error, MixerTimeout)
        assert group.result(WAIT_S) == [first]


Make = Callable[[], Job]


def work_done(batcher: Batcher, streams: list[Make], num_passes: int) -> Counter[str]:
    """Serve streams that send again once they are answered or refused, while the next pass is under way already."""
    done: Counter[str] = Counter()
    owners: dict[Job, Make] = {}
    ready, answered = streams, []
    for _ in range(num_passes):
        for make in ready:
            job = make()
            try:
                batcher.submit(job)
                owners[job] = make
            except MixerOverloaded:
                answered.append(make)
        group = batcher.next_group()
        gone = [job for job in owners if job.answer.done()]
        ready = answered + [owners.pop(job) for job in gone]
        answered = [owners.pop(job) for job in group]
        for job in group:
            done[job.client] += job.work
    return done


@pytest.mark.parametrize(
    ("greedy", "modest", "window"),
    [
        ((64, 8), (64, 8), 1),
        ((64, 8), (64, 8), 4),
        ((1, 8), (64, 8), 1),
        ((64, 8), (8, 8), 16),
        ((24, 8), (40, 8), 4),
        ((64, 16), (64, 8), 16),
        ((64, 8), (64, 16), 4),
        ((256, 8), (64, 8), 8),
    ],
)
@pytest.mark.parametrize("max_queue_images", [512, 65536])
def test_greedy_and_modest_client(greedy: tuple[int, int], modest: tuple[int, int], window: int, max_queue_images: int):
    """A client of one stream keeps 45 % of the work beside one of 16 that sends far more than a pass holds."""
    batcher = Batcher(BatchingConfig(max_queue_images=max_queue_images))
    streams = [lambda: make_job(*greedy, client="greedy")] * (16 * 8) + [
        lambda: make_job(*modest, client="modest")
    ] * window

    done = work_done(batcher, streams, num_passes=100)

    assert done["modest"] / done.total() >= 0.45


arrivals = st.lists(
    st.tuples(
        st.floats(0, 2),
        st.integers(1, 9),
        st.integers(0, 2),
        st.floats(0.1, 5),
        st.booleans(),
        st.sampled_from("ab"),
        st.sampled_from(PRIORITIES),
    ),
    max_size=40,
)


@given(arrivals)
def test_conservation(arrivals: list[tuple[float, int, int, float, bool, str, int]]):
    """Each accepted request is handed out once or told why not; groups are alike, bounded and in order."""
    clock = Clock()
    batcher = Batcher(CONFIG, clock)
    accepted: list[Job] = []
    groups: list[list[Job]] = []
    for delay_s, num_images, side, patience_s, is_cancelled, client, priority in arrivals:
        clock.now_s += delay_s
        job = make_job(num_images, side, clock.now_s + patience_s, client=client, priority=priority)
        waiting = batcher.num_images
        try:
            batcher.submit(job)
            accepted.append(job)
        except MixerOverloaded:
            assert waiting + num_images > CONFIG.max_queue_images
        if is_cancelled:
            job.give_up()
        while isinstance(group := batcher.decide(), list):
            groups.append(group)
        assert batcher.num_images <= CONFIG.max_queue_images
    batcher.close()
    while group := batcher.next_group():
        groups.append(group)

    given_out = [job for group in groups for job in group]
    by_queue: dict[object, list[Job]] = defaultdict(list)
    for job in given_out:
        by_queue[job.key, job.client, job.priority].append(job)
    assert all(len({job.key for job in group}) == 1 for group in groups)
    assert all(len(group) == 1 or sum(job.num_images for job in group) <= CONFIG.max_images for group in groups)
    assert all(jobs == sorted(jobs, key=accepted.index) for jobs in by_queue.values())
    assert len(given_out) == len(set(given_out))
    assert {job for job in accepted if not job.answer.done()} == set(given_out)
    assert (batcher.num_requests, batcher.num_images, batcher.num_bytes, batcher.num_clients) == (0, 0, 0, 0)


def test_large_images_make_small_passes():
    """The memory for attention scores bounds a pass: 4 bytes for each pair of tokens of each image."""
    batcher = Batcher(BatchingConfig(max_attention_mib=16))

    assert batcher.max_pass_images(64) == 1024
    assert batcher.max_pass_images(1024) == 4
    assert batcher.max_pass_images(4096) == 0


def test_memory_bounds_a_group(batcher: Batcher):
    """Images that fit into a pass by number but not by memory are computed one after the other."""
    first, second = make_job(2), make_job(2)
    first.max_pass_images = second.max_pass_images = 3
    batcher.submit(first)
    batcher.submit(second)

    assert batcher.decide() == [first]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"max_images": 0}, "max-images must be at least 1, got 0"),
        ({"max_attention_mib": 0}, "max-attention-mib must be at least 1, got 0"),
        (
            {"max_images": 8, "preferred_images": (4, 9)},
            "preferred-images must lie in 1..batching.max-images .8., got 9",
        ),
        ({"preferred_images": (0,)}, "got 0"),
        ({"max_queue_delay_s": -1.0}, "max-queue-delay-s must be positive and at most 86400 .a day., got -1.0"),
        ({"max_queue_delay_s": math.inf}, "got inf"),
    ],
)
def test_refuses_settings(settings: dict, sentence: str):
    """Settings that cannot work are refused with the value."""
    with pytest.raises(ConfigError, match=sentence):
        BatchingConfig(**settings)
