"""The order of an epoch: pure functions, so that a run resumes anywhere, also with another number of ranks.

Shards are shuffled, then samples within a window of shards (memory and disk see only that window at a time). The order
is cut into C lanes of equal length; step t takes the next G / C positions of every lane, where G is the global batch,
and rank r of W reads the lanes [r C / W, (r + 1) C / W). The batch of step t thus holds the same samples for every W,
and the whole state of an epoch is (seed, epoch, steps done).

    order   |------ lane 0 ------|------ lane 1 ------|------ lane 2 ------|------ lane 3 ------|  tail, dropped
    W = 2    ^ rank 0 reads two lanes side by side      ^ rank 1
"""

import math
from collections.abc import Sequence

import numpy as np

from samix.errors import ConfigError

_ORDER_STREAM = 1
"""First word of the seed here; augmentation uses another, so that the two never share random numbers."""


def default_lanes(global_batch: int) -> int:
    """Choose C for a global batch; it may depend on nothing else, or a run could not resume with other ranks.

    960 = 64 * 3 * 5 has most world sizes up to 64 as divisors. More lanes would read more windows at once for nothing.
    """
    return math.gcd(global_batch, 960)


def epoch_order(samples_per_shard: Sequence[int], *, seed: int, epoch: int, window: int) -> np.ndarray:
    """Shuffle one epoch.

    Args:
        samples_per_shard: sizes of the shards, in the order of their names.
        seed: of the run, not negative.
        epoch: number of the epoch, from 0.
        window: shards whose samples are shuffled together.

    Returns:
        int64 [N]: every position once.
    """
    rng = np.random.default_rng((_ORDER_STREAM, seed, epoch))
    shards = np.split(np.arange(sum(samples_per_shard)), np.cumsum(samples_per_shard)[:-1])
    shuffled = [shards[i] for i in rng.permutation(len(shards))]
    windows = [np.concatenate(shuffled[i : i + window]) for i in range(0, len(shuffled), window)]
    return np.concatenate([rng.permutation(samples) for samples in windows])


def steps_per_epoch(num_samples: int, global_batch: int) -> int:
    """Count the full global batches of an epoch.

    Raises:
        ConfigError: if there is not even one.
    """
    if num_samples < global_batch:
        raise ConfigError(f"{num_samples} samples do not fill a global batch of {global_batch}; make the batch smaller")
    return num_samples // global_batch


def check_division(*, global_batch: int, lanes: int, world_size: int) -> None:
    """Refuse sizes that would give ranks unequal work.

    Raises:
        ConfigError: unless the world size divides the lanes and the lanes divide the global batch.
    """
    if global_batch % lanes:
        raise ConfigError(f"{lanes} lanes do not divide the global batch {global_batch}; change one of them")
    if lanes % world_size:
        raise ConfigError(
            f"{world_size} ranks do not divide the {lanes} lanes of global batch {global_batch}; "
            f"set lanes to a multiple of {world_size} that divides the batch"
        )


def rank_batches(order: np.ndarray, *, global_batch: int, lanes: int, rank: int, world_size: int) -> np.ndarray:
    """Deal an epoch's order out to one rank; every rank gets the same number of steps.

    Args:
        order: int64 [N] of `epoch_order`.
        global_batch: samples per step of all ranks together, G.
        lanes: C; divides G.
        rank: which rank, from 0.
        world_size: number of ranks W; divides C.

    Returns:
        int64 [steps, G / W]: positions of each step; slice it to resume.

    Raises:
        ConfigError: if the sizes do not divide each other, or no batch can be filled.
    """
    check_division(global_batch=global_batch, lanes=lanes, world_size=world_size)
    steps = steps_per_epoch(len(order), global_batch)
    dealt = order[: steps * global_batch].reshape(world_size, lanes // world_size, steps, global_batch // lanes)
    return dealt[rank].transpose(1, 0, 2).reshape(steps, global_batch // world_size)


def evaluation_positions(num_samples: int, *, rank: int, world_size: int) -> np.ndarray:
    """Give a rank every W-th position: all of them once, nothing padded, so that ranks may differ by one sample."""
    return np.arange(rank, num_samples, world_size)


def split_steps(steps: np.ndarray, micro_batches: int) -> np.ndarray:
    """Cut each step of a rank into consecutive batches of one size.

    Args:
        steps: int64 [steps, B] of `rank_batches`.
        micro_batches: batches per step, M; divides B.

    Returns:
        int64 [steps * M, B / M].

    Raises:
        ConfigError: if M does not divide B.
    """
    batch_size = steps.shape[1]
    if micro_batches < 1 or batch_size % micro_batches:
        raise ConfigError(
            f"a step cannot accumulate {micro_batches} batches of the {batch_size} samples that a rank has of it; "
            f"choose a divisor of {batch_size}, or another global batch"
        )
    return steps.reshape(-1, batch_size // micro_batches)
