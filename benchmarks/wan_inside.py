"""Runs a module on a host of `wan_network`: `python -m benchmarks.wan_inside NAMESPACE MODULE [ARGS...]`."""

import ctypes
import os
import sys
from pathlib import Path

from benchmarks.wan_network import DEVICE

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of linux/sched.h


def main() -> None:
    """Enter the namespace, and become the module."""
    namespace, module, *args = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as file:
        if libc.setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), namespace)
    # Gloo would look the machine's name up, which has no address here.
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    os.execv(sys.executable, [sys.executable, "-m", module, *args])


if __name__ == "__main__":
    main()
