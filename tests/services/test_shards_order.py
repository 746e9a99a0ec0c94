import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samix.errors import ConfigError
from services.shards.order import (
    check_division,
    default_lanes,
    epoch_order,
    evaluation_positions,
    rank_batches,
    steps_per_epoch,
)

SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(shards=SHARDS, seed=st.integers(0, 2**70), epoch=st.integers(0, 1000), window=st.integers(1, 20))
def test_an_epoch_holds_every_position_once(shards, seed, epoch, window):
    """An epoch's order is a permutation of all positions, the same each time it is asked for."""
    order = epoch_order(shards, seed=seed, epoch=epoch, window=window)

    assert np.array_equal(np.sort(order), np.arange(sum(shards)))
    assert np.array_equal(order, epoch_order(shards, seed=seed, epoch=epoch, window=window))


def test_epochs_and_seeds_differ():
    """Another epoch or seed is another order; (seed, epoch) and (epoch, seed) are not confused."""
    orders = [
        epoch_order([50, 50], seed=seed, epoch=epoch, window=2) for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1)]
    ]

    assert len({order.tobytes() for order in orders}) == 4


@given(shards=st.lists(st.integers(1, 20), min_size=2, max_size=10), window=st.integers(1, 4))
def test_samples_stay_within_their_window(shards, window):
    """At any time only `window` shards are being read: each window of the order holds whole shards."""
    starts = np.cumsum([0, *shards])
    shard_of = np.repeat(np.arange(len(shards)), shards)

    order = epoch_order(shards, seed=3, epoch=0, window=window)

    done = 0
    while done < len(order):
        touched: list[int] = []
        for shard in shard_of[order[done:]]:
            if shard not in touched:
                touched.append(int(shard))
            if len(touched) == window:
                break
        size = sum(shards[shard] for shard in touched)
        expected = np.concatenate([np.arange(starts[shard], starts[shard + 1]) for shard in touched])
        assert np.array_equal(np.sort(order[done : done + size]), np.sort(expected))
        done += size


@given(
    num_samples=st.integers(24, 400),
    per_lane=st.integers(1, 3),
    lanes=st.sampled_from([4, 8, 12]),
    first_step=st.integers(0, 3),
)
def test_every_number_of_ranks_trains_on_the_same_batches(num_samples, per_lane, lanes, first_step):
    """Step t holds the same samples for 1, 2 and 4 ranks, all ranks have as many steps, and nothing comes twice."""
    global_batch = min(per_lane * lanes, num_samples // lanes * lanes)
    order = epoch_order([num_samples], seed=1, epoch=2, window=1)

    def step_sets(world_size: int) -> list[list[int]]:
        dealt = [
            rank_batches(order, global_batch=global_batch, lanes=lanes, rank=rank, world_size=world_size)[first_step:]
            for rank in range(world_size)
        ]
        assert len({batches.shape for batches in dealt}) == 1
        return [sorted(np.concatenate(step).tolist()) for step in zip(*dealt, strict=True)]

    alone = step_sets(1)

    assert len(alone) == max(0, num_samples // global_batch - first_step)
    assert step_sets(2) == alone
    assert step_sets(4) == alone
    flat = [position for step in alone for position in step]
    assert len(set(flat)) == len(flat)


def test_each_step_takes_equally_from_each_lane():
    """Step t takes the next G / C positions of every lane."""
    batches = rank_batches(np.arange(24), global_batch=8, lanes=4, rank=1, world_size=2)

    assert batches.tolist() == [[12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]


@pytest.mark.parametrize(
    ("global_batch", "lanes", "world_size", "words"),
    [
        (100, 8, 1, "8 lanes do not divide the global batch 100"),
        (96, 8, 3, "3 ranks do not divide the 8 lanes of global batch 96; set lanes to a multiple of 3"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(global_batch, lanes, world_size, words):
    """The world size must divide the lanes, the lanes the global batch."""
    with pytest.raises(ConfigError, match=words):
        check_division(global_batch=global_batch, lanes=lanes, world_size=world_size)


def test_an_epoch_without_a_full_batch_is_refused():
    """Fewer samples than a global batch would train on nothing, so that is an error."""
    with pytest.raises(ConfigError, match="31 samples do not fill a global batch of 32"):
        steps_per_epoch(31, 32)
    assert steps_per_epoch(65, 32) == 2


@pytest.mark.parametrize(("global_batch", "world_sizes"), [(128, [1, 2, 4, 8, 64]), (96, [3, 6]), (1000, [5, 8])])
def test_default_lanes_suit_common_world_sizes(global_batch, world_sizes):
    """The lanes chosen for a batch let the usual numbers of ranks divide it."""
    lanes = default_lanes(global_batch)

    for world_size in world_sizes:
        check_division(global_batch=global_batch, lanes=lanes, world_size=world_size)


@given(num_samples=st.integers(0, 100), world_size=st.integers(1, 8))
def test_evaluation_counts_every_sample_once(num_samples, world_size):
    """Together the ranks evaluate each sample once, with no padding."""
    parts = [evaluation_positions(num_samples, rank=rank, world_size=world_size) for rank in range(world_size)]

    assert sorted(np.concatenate(parts).tolist()) == list(range(num_samples))
