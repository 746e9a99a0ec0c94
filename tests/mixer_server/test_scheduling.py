from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queueing import make_job

from mixer_server.scheduling.fair_queue import PRIORITIES, FairQueue
from mixer_server.scheduling.job import Job
from samix.mixer.v1 import mixer_pb2 as pb

LOW, NORMAL, HIGH = pb.PRIORITY_LOW, pb.PRIORITY_NORMAL, pb.PRIORITY_HIGH


def fill(queue: FairQueue, jobs: Iterable[Job]) -> list[Job]:
    added = list(jobs)
    for job in added:
        queue.add(job)
    return added


def test_pass_is_filled_by_turns():
    """A client that comes late shares the next pass equally with one that has a long queue of the same kind."""
    queue = FairQueue(8)
    fill(queue, (make_job(client="greedy") for _ in range(100)))
    queue.cut()
    fill(queue, (make_job(client="modest") for _ in range(100)))

    groups = [queue.cut() for _ in range(8)]

    assert Counter(job.client for group in groups for job in group) == {"greedy": 32, "modest": 32}
    assert all(3 <= sum(job.client == "modest" for job in group) <= 5 for group in groups)


def test_shares_are_of_work():
    """Clients whose images differ in size get equal shares of the mixer's time, not of the images."""
    queue = FairQueue(8)
    fill(queue, (make_job(8, side=16, client="large") for _ in range(100)))
    fill(queue, (make_job(8, side=8, client="small") for _ in range(100)))

    served = [job for _ in range(50) for job in queue.cut()]

    assert Counter(job.client for job in served) == {"large": 10, "small": 40}


def test_client_that_stays_away_saves_up_nothing():
    """Who comes back after a long pause takes turns from then on."""
    queue = FairQueue(1)
    fill(queue, [make_job(client="absent"), *(make_job(client="steady") for _ in range(100))])
    for _ in range(50):
        queue.cut()
    fill(queue, (make_job(client="absent") for _ in range(50)))

    clients = [queue.cut()[0].client for _ in range(20)]

    assert Counter(clients) == {"absent": 10, "steady": 10}


def test_cancelled_work_is_not_charged():
    """A client whose requests were cancelled in the queue has lost no turns."""
    queue = FairQueue(1)
    cancelled = fill(queue, (make_job(client="hasty") for _ in range(50)))
    fill(queue, (make_job(client="patient") for _ in range(50)))
    for job in cancelled:
        queue.remove(job.number)
    fill(queue, (make_job(client="hasty") for _ in range(50)))

    clients = [queue.cut()[0].client for _ in range(20)]

    assert Counter(clients) == {"hasty": 10, "patient": 10}


def test_clients_that_come_once_do_not_starve_who_stays():
    """A client with a queue is served beside a stream of new names, each of which would go first."""
    queue = FairQueue(1)
    fill(queue, (make_job(client="steady") for _ in range(100)))
    served: Counter[str] = Counter()
    for number in range(1000):
        fill(queue, [make_job(client=f"passer-by {number}")])
        served.update(job.client for job in queue.cut())

    assert served["steady"] > 1000 / 20


def test_few_idle_clients_are_remembered():
    """However many clients have come, little is kept of those that wait for nothing."""
    queue = FairQueue(1)
    fill(queue, (make_job(8, client="steady") for _ in range(10)))
    for number in range(2000):
        fill(queue, [make_job(client=f"passer-by {number}")])
        queue.cut()

    assert len(queue._turns[NORMAL]._idle) <= 256


def test_those_furthest_ahead_are_remembered():
    """Who was given most has not the next turn again, however many others have come since."""
    queue = FairQueue(1)
    fill(queue, [make_job(64, client="ahead")])
    queue.cut()
    for number in range(1000):
        fill(queue, [make_job(side=1, client=f"passer-by {number}")])
        queue.cut()
    fill(queue, [make_job(client="ahead"), make_job(client="new")])

    clients = [queue.cut()[0].client for _ in range(2)]

    assert clients == ["new", "ahead"]


def test_kinds_leave_nothing_behind():
    """However many image sizes have come, nothing is kept of those that wait no longer."""
    queue = FairQueue(8)
    for side in range(1, 100):
        fill(queue, [make_job(side=side), make_job(side=side)])
        queue.cut()

    assert not queue._lanes
    assert not queue._turns[NORMAL]._lines


def test_higher_priorities_go_first():
    """HIGH goes before NORMAL and NORMAL before LOW, whoever came first or was given less."""
    queue = FairQueue(1)
    jobs = fill(queue, [make_job(priority=priority) for priority in (LOW, NORMAL, HIGH, LOW, NORMAL, HIGH)])

    order = [jobs.index(queue.cut()[0]) for _ in jobs]

    assert order == [2, 5, 1, 4, 0, 3]


def test_lower_priorities_fill_up():
    """A pass with room left takes lower priorities along, but none that would overtake a higher one."""
    queue = FairQueue(8)
    high, normal, low = fill(queue, [make_job(priority=priority) for priority in (HIGH, NORMAL, LOW)])
    elsewhere = make_job(side=9)
    queue.add(elsewhere)

    groups = [queue.cut() for _ in range(3)]

    assert groups == [[high, normal], [elsewhere], [low]]


def test_same_kind_keeps_its_order():
    """One client's requests leave in the order they came, whichever kinds it mixes."""
    queue = FairQueue(2)
    jobs = fill(queue, [make_job(side=side) for side in (8, 9, 8, 9, 8)])

    groups = [queue.cut() for _ in range(3)]

    assert groups == [[jobs[0], jobs[2]], [jobs[1], jobs[3]], [jobs[4]]]


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([4, 4, 4, 4], 4),  # 16 is the largest
        ([4, 4, 4], 2),  # 12 is none, 8 is
        ([3, 3, 3], 3),  # none can be made of whole requests
        ([16, 1], 1),
        ([20], 1),
    ],
)
def test_preferred_sizes(sizes: list[int], taken: int):
    """A pass is cut at the largest preferred size that whole requests make, and takes all that fit where none is."""
    queue = FairQueue(16, frozenset({8, 16}))
    jobs = fill(queue, [make_job(size) for size in sizes])

    group = queue.cut()

    assert group == jobs[:taken]


def test_full_keys():
    """A kind of request fills a pass at the most images, at what memory allows, or at a preferred size."""
    queue = FairQueue(16, frozenset({8}))
    fill(queue, [make_job(15, side=1), make_job(16, side=2), make_job(8, side=3), make_job(3, side=4)])
    fill(queue, [make_job(4, side=5, max_pass_images=4)])

    sides = {key.height for key in queue.full_keys()}

    assert sides == {2, 3, 5}


def test_preferred_keys_do_not_overtake_priorities():
    """Among requests of one priority those of a preferred kind go first; a higher priority goes before them."""
    queue = FairQueue(8)
    early, full = fill(queue, [make_job(side=8), make_job(8, side=9)])
    chosen = queue.cut({full.key})
    high = make_job(side=7, priority=HIGH)
    fill(queue, [full, high])

    assert chosen == [full]
    assert queue.cut({full.key}) == [high]
    assert queue.cut() == [early]


def leaving(queue: FairQueue, job: Job) -> list[Job]:
    return list(queue.giving_way_to(job))


def test_newest_of_the_largest_gives_way():
    """For a newcomer the client that waits with most gives up its newest, down to what the newcomer gets."""
    queue = FairQueue(8)
    greedy = fill(queue, (make_job(2, client="greedy", side=8 + number % 2) for number in range(5)))
    fill(queue, (make_job(2, client="other") for _ in range(3)))

    assert leaving(queue, make_job(4, client="modest")) == [greedy[4], greedy[3], greedy[2]]
    assert leaving(queue, make_job(4, client="other")) == []
    assert leaving(queue, make_job(2, client="other")) == [greedy[4]]
    assert leaving(queue, make_job(1, client="greedy")) == []


def test_lower_priorities_give_way():
    """Requests of lower priorities give way first, the lowest and newest before others; higher ones never."""
    queue = FairQueue(8)
    _, normal, old, new = fill(
        queue,
        [make_job(client=client, priority=priority) for client, priority in zip("abcd", (3, 2, 1, 1), strict=True)],
    )

    assert leaving(queue, make_job(client="e", priority=HIGH)) == [new, old, normal]
    assert leaving(queue, make_job(client="e", priority=NORMAL)) == [new, old]
    assert leaving(queue, make_job(client="e", priority=LOW)) == []


jobs_to_wait = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 3), st.sampled_from("abc"), st.sampled_from(PRIORITIES), st.booleans()),
    max_size=40,
)


@given(jobs_to_wait, st.sets(st.integers(1, 8)))
def test_counts_what_waits(steps: list[tuple[int, int, str, int, bool]], preferred: set[int]):
    """Requests, images, bytes, work and clients are counted exactly, whatever comes, leaves or is taken away."""
    queue = FairQueue(8, preferred)
    waiting: list[Job] = []
    for num_images, side, client, priority, is_cut in steps:
        job = make_job(num_images, side, client=client, priority=priority)
        queue.add(job)
        waiting.append(job)
        if is_cut:
            group = queue.cut(queue.full_keys())
            waiting = [job for job in waiting if job not in group]
        elif num_images == 1:
            assert queue.remove(job.number) is waiting.pop()
            assert queue.remove(job.number) is None
        assert (len(queue), queue.num_images) == (len(waiting), sum(job.num_images for job in waiting))
        assert queue.num_bytes == sum(job.call.pixels.nbytes for job in waiting)
        assert queue.work == sum(job.work for job in waiting)
        assert queue.num_clients == len({(job.client, job.priority) for job in waiting})
    while queue:
        group = queue.cut()
        waiting = [job for job in waiting if job not in group]

    assert not waiting
    assert not queue.full_keys()


sizes_and_sides = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=100, max_size=100)


@given(sizes_and_sides, sizes_and_sides)
def test_backlogged_clients_stay_level(greedy: list[tuple[int, int]], modest: list[tuple[int, int]]):
    """While both wait, what two clients were given differs by no more than a few passes, whatever they send."""
    queue = FairQueue(8)
    for kinds in zip(greedy, modest, strict=True):
        fill(queue, (make_job(*kind, client=client) for client, kind in zip(("greedy", "modest"), kinds, strict=True)))
    given: Counter[str] = Counter()
    pass_work = 8 * 4 * 4

    while queue.num_clients == 2:
        for job in queue.cut():
            given[job.client] += job.work
        assert abs(given["greedy"] - given["modest"]) <= 4 * pass_work
