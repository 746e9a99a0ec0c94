"""Servers run under a policy that spares switches between threads."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, threading
from services.cpu_policy import run_uninterrupted
print(run_uninterrupted())
thread = threading.Thread(target=lambda: print(os.sched_getscheduler(0) == os.SCHED_BATCH))
thread.start()
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")
def test_threads_of_a_server_do_not_interrupt_each_other() -> None:
    """Threads that are started afterwards have the policy too."""
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True)

    assert said.stdout.split() == ["True", "True"]
