"""The machine under a benchmark: what it is, which core does what, and how long a process had one."""

import ctypes
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Cores:
    """Which core client and server are bound to; None where this system cannot bind a process."""

    client: int | None
    """Number of the client's core."""
    server: int | None
    """Number of the server's core; the client's where there is only one."""


def choose_cores() -> Cores:
    """Take the first and the last of the cores this process may use."""
    if not hasattr(os, "sched_setaffinity"):
        return Cores(client=None, server=None)
    usable = sorted(os.sched_getaffinity(0))
    return Cores(client=usable[0], server=usable[-1])


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Bind this thread, and what it starts inside the block, to one core; None binds nothing.

    Threads and processes started before stay where they were.
    """
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def bind_child(process_id: int, core: int | None) -> None:
    """Bind a process that was just started, and all the threads it will make, to one core; None binds nothing.

    For parents that use gRPC: it makes threads anew at every fork, and with `on_core` around that fork the parent's own
    would stay on the child's core.
    """
    if core is not None:
        os.sched_setaffinity(process_id, {core})


def process_cpu_s(process_id: int) -> float:
    """Read the processor time of another process, which Python offers for its own and for ended ones only.

    Raises:
        ProcessLookupError: if there is none.
    """
    libc, clock = ctypes.CDLL(None), ctypes.c_int()
    if error := libc.clock_getcpuclockid(process_id, ctypes.byref(clock)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(clock.value)


def describe_machine() -> dict[str, Any]:
    """Name processor, cores and load, the last because figures of a busy machine only compare among themselves."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
