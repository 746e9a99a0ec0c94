"""Where ranks meet: a store of their own for each time they are started.

torchrun offers its workers a store that outlives them, with the addresses of ranks that are gone: after a restart the
ranks connect to those and fail (pytorch/pytorch#135712; torch 2.12 does so with --standalone). Its store is used here
only to learn where rank 0 has opened a fresh one.
"""

import os
import time
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistNetworkError, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

_KEY = "samix/rank0-store"
_ATTEMPT = timedelta(seconds=5)
"""Longest try to reach a store; what is listed may be that of a rank 0 that was killed."""


def is_offered() -> bool:
    """Tell whether torchrun started this process with a store that outlives it."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def fresh_store(rank: int, timeout: timedelta) -> Store:
    """Open the store of this start of the ranks, or find it.

    Args:
        rank: of this process.
        timeout: for finding it, and for what waits in it later.

    Raises:
        DistNetworkError: if rank 0 cannot be reached in time.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])  # on rank 0's machine
    offered = TCPStore(host, port, is_master=False, timeout=timeout)
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        offered.set(_KEY, str(store.port))
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        with suppress(DistNetworkError):
            store = TCPStore(host, int(offered.get(_KEY)), is_master=False, timeout=_ATTEMPT)
            store.set_timeout(timeout)
            return store
    raise DistNetworkError(f"rank {rank} found no rank 0 at {host} within {timeout.total_seconds():.0f} s")
