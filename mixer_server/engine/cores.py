"""How many processors this process may keep busy: what it is bound to, and what its container is allowed."""

import os
from pathlib import Path

from samix.errors import ConfigError

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MAX_LANES = 4
"""Unless more are asked for: each is a batch in memory, and a longer wait for the first of them."""
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def usable_cores(quota: Path = _QUOTA, siblings: str = _SIBLINGS) -> int:
    """Count the physical cores: two threads of one core share its arithmetic, so a pass gains nothing from the second.

    Args:
        quota: where the container's share of processor time stands, as `microseconds period` or `max period`.
        siblings: where the hardware threads of a processor's core are listed, by its number.
    """
    bound = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_read(Path(siblings.format(number))) or str(number) for number in bound}
    allowed, _, period = _read(quota).partition(" ")
    if not allowed.isdigit() or not period.isdigit():
        return len(cores)
    return max(1, min(len(cores), int(allowed) // int(period)))


def threads_per_worker(num_workers: int) -> int:
    """Divide the cores among processes that compute at the same time."""
    return max(1, usable_cores() // num_workers)


def choose_lanes(wanted: int, device: str, *, makes_ahead: bool) -> int:
    """Say how many passes are computed at once.

    Args:
        wanted: as many as somebody asked for; 0 if nobody did.
        device: what computes them.
        makes_ahead: whether several batches are always waiting, so that no pass is in anybody's way.

    Raises:
        ConfigError: if several are wanted of a GPU.
    """
    if device != "cpu":
        if wanted > 1:
            raise ConfigError(f"lanes is {wanted}, but a GPU has one, in which passes overlap; omit --lanes")
        return 1
    return wanted or (min(_MAX_LANES, usable_cores()) if makes_ahead else 1)


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:  # another system, or none of our business
        return ""
