"""How much memory this process may have, and how much it has."""

import os
from pathlib import Path

from samix.errors import ConfigError

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_SHARE = 0.8
"""Of the memory of a machine or container that is taken where nothing else is said."""
_REQUESTS_SHARE = 0.5
"""Of what mixers leave; the rest is for passes, for copies while a message is read, and for what malloc keeps free."""
_LEAST_BYTES = 64 << 20
"""For requests; less would refuse ordinary batches."""


def request_bytes(memory_mib: int) -> int:
    """Say how much memory requests may hold: half of the planned memory less what the process has now.

    Args:
        memory_mib: resident memory planned for the process, in MiB; 0 takes most of the machine's or container's.

    Raises:
        ConfigError: if hardly anything is left.
    """
    planned = planned_mib(memory_mib) << 20
    left = int(_REQUESTS_SHARE * (planned - resident_bytes()))
    if left < _LEAST_BYTES:
        raise ConfigError(
            f"memory-mib is {planned >> 20}, of which the loaded mixers and libraries take {resident_bytes() >> 20}; "
            f"requests get {_REQUESTS_SHARE:.0%} of the rest, and need {_LEAST_BYTES >> 20} at least"
        )
    return left


def planned_mib(memory_mib: int) -> int:
    """Say how much resident memory is planned, in MiB: what was asked for, or for 0 most of the machine's."""
    return memory_mib or int(_SHARE * limit_bytes()) >> 20


def resident_bytes() -> int:
    """Read the resident memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * _page_bytes()


def limit_bytes() -> int:
    """Read how much memory this machine has, or its container may have."""
    machine = _page_bytes() * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for file in _CGROUP_LIMITS if file.exists() and (text := file.read_text().strip()).isdigit()]
    return min([machine, *limits])


def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")
