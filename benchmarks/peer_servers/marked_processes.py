"""All processes that a command has led to, found by a mark in the environment they inherited.

A mark reaches what a process tree does not show: daemons whose parents ended. Linux only.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

MARK = "SAMIX_BENCH_MARK"
"""Variable that carries the mark."""
_POLL_S = 0.02


def find_marked(mark: str) -> list[int]:
    """List the ids of the living processes that carry a mark, zombies excepted."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or another user's
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def cpu_s(process_ids: list[int]) -> float:
    """Sum up the processor time of some processes, in seconds; those that have ended count nothing."""
    ticks = 0
    for process_id in process_ids:
        with suppress(OSError):
            # Behind the name, which may hold anything: user and system time are fields 14 and 15 of the whole line.
            fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def kill_marked(mark: str, timeout_s: float = 10.0) -> None:
    """Kill whatever carries a mark, what it starts meanwhile too, and wait until it is gone.

    Raises:
        TimeoutError: if something is still there after `timeout_s`.
    """
    end_s = time.monotonic() + timeout_s
    while left := find_marked(mark):
        if time.monotonic() > end_s:
            raise TimeoutError(f"processes {left} do not end, {timeout_s:.0f} s after SIGKILL")
        for process_id in left:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        time.sleep(_POLL_S)
