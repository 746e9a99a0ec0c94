import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixer_server.batcher import Batcher, BatchingConfig
from mixer_server.job import GroupKey, Job
from samix.errors import ConfigError, MixerOverloaded, MixerTimeout, MixerUnavailable
from samix.wire import MixCall

CONFIG = BatchingConfig(max_images=8, max_queue_images=20, max_queue_delay_s=1.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def make_job(num_images: int = 1, side: int = 8, deadline_s: float = math.inf) -> Job:
    call = MixCall(
        mixer="m",
        pixels=np.zeros((num_images, 3, 1, 1), np.uint8),
        lam=np.zeros(num_images, np.float32),
        partner=np.arange(num_images),
    )
    return Job(key=GroupKey("m", "v", side, side, "uint8"), call=call, deadline_s=deadline_s, max_pass_images=9)


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


def test_closing_hands_out_what_was_accepted(batcher: Batcher):
    """After closing, accepted requests leave at once, new ones are refused, then groups are empty."""
    job = make_job()
    batcher.submit(job)

    batcher.close()

    with pytest.raises(MixerUnavailable, match="server is shutting down"):
        batcher.submit(make_job())
    assert batcher.next_group() == [job]
    assert batcher.next_group() == []


def test_taker_wakes_up():
    """A thread that waits for a group gets it when a request comes."""
    batcher = Batcher(BatchingConfig(max_queue_delay_s=0))
    job = make_job()

    with ThreadPoolExecutor(1) as pool:
        group = pool.submit(batcher.next_group)
        batcher.submit(job)

        assert group.result(10) == [job]


arrivals = st.lists(
    st.tuples(st.floats(0, 2), st.integers(1, 9), st.integers(0, 2), st.floats(0.1, 5), st.booleans()), max_size=40
)


@given(arrivals)
def test_conservation(arrivals: list[tuple[float, int, int, float, bool]]):
    """Each accepted request is handed out once, expires or was cancelled; groups are alike, bounded and in order."""
    clock = Clock()
    batcher = Batcher(CONFIG, clock)
    accepted: list[Job] = []
    groups: list[list[Job]] = []
    for delay_s, num_images, side, patience_s, is_cancelled in arrivals:
        clock.now_s += delay_s
        job = make_job(num_images, side, clock.now_s + patience_s)
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
    by_key: dict[GroupKey, list[Job]] = defaultdict(list)
    for job in given_out:
        by_key[job.key].append(job)
    assert all(len({job.key for job in group}) == 1 for group in groups)
    assert all(len(group) == 1 or sum(job.num_images for job in group) <= CONFIG.max_images for group in groups)
    assert all(jobs == sorted(jobs, key=accepted.index) for jobs in by_key.values())
    assert len(given_out) == len(set(given_out))
    assert {job for job in accepted if not job.answer.done()} == {job for job in given_out if not job.answer.done()}
    assert not any(job.answer.cancelled() for job in given_out)


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
        ({"max_queue_delay_s": -1.0}, "max-queue-delay-s must be positive and at most 86400 .a day., got -1.0"),
        ({"max_queue_delay_s": math.inf}, "got inf"),
    ],
)
def test_refuses_settings(settings: dict, sentence: str):
    """Settings that cannot work are refused with the value."""
    with pytest.raises(ConfigError, match=sentence):
        BatchingConfig(**settings)
