"""Where ranks meet: a store of their own for each time they are started.

torchrun offers its workers a store that outlives them, with the addresses of ranks that are gone: after a restart the
ranks connect to those and fail (pytorch/pytorch#135712; torch 2.12 does so with --standalone). Its store is used here
only to learn where rank 0 has opened a fresh one, and whether ranks that are gone had begun this run.
"""

import os
import socket
import time
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistNetworkError, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

_KEY = "samix/rank0-store"
_BEGUN = "samix/begun"
_ATTEMPT = timedelta(seconds=5)
"""Longest try to reach a store; what is listed may be that of a rank 0 that was killed."""
_POLL_S = 0.1


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
    host = os.environ["MASTER_ADDR"]  # rank 0's machine
    offered = _offered_store(timeout)
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        offered.set(_KEY, str(store.port))
        return store
    deadline = time.monotonic() + timeout.total_seconds()
    while time.monotonic() < deadline:
        port = int(offered.get(_KEY))
        with suppress(DistNetworkError):
            if _is_open(host, port):
                store = TCPStore(host, port, is_master=False, timeout=_ATTEMPT)
                store.set_timeout(timeout)
                return store
        time.sleep(_POLL_S)
    raise DistNetworkError(f"rank {rank} found no rank 0 at {host} within {timeout.total_seconds():.0f} s")


def note_begun() -> None:
    """Tell the ranks that torchrun will start in place of these that the run is theirs; for rank 0."""
    if is_offered():
        _offered_store(_ATTEMPT).set(_BEGUN, "yes")


def has_begun() -> bool:
    """Tell whether ranks that the same torchrun started before these had begun the run.

    A restart alone does not tell: ranks that refused a folder are started again too, and each machine counts only the
    restarts of its own making.
    """
    if is_offered():
        return _offered_store(_ATTEMPT).check([_BEGUN])
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _is_open(host: str, port: int) -> bool:
    # Asked first: of a store that is gone torch logs its stack, and tries for seconds.
    try:
        socket.create_connection((host, port), _ATTEMPT.total_seconds()).close()
    except OSError:
        return False
    return True


def _offered_store(timeout: timedelta) -> TCPStore:
    return TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout)
