"""How the kernel schedules a program of many threads that hand work to each other."""

import os
from contextlib import suppress


def run_uninterrupted() -> bool:
    """Let a thread that wakes another go on, instead of making way for it (SCHED_BATCH).

    In Python whoever is woken first waits for the lock of the interpreter, which its waker holds: half of the switches
    between threads are for nothing. Without them a server on one core takes 5 to 10 % less processor time for a batch.
    Call it before threads are started, which inherit it.

    Returns:
        False where the system has no such policy, or allows none.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return False
    with suppress(PermissionError):  # in some sandboxes
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        return True
    return False
