"""glibc's malloc, tuned for buffers of ten megabytes that come and go with every message.

Left alone it asks the kernel for fresh pages each time and gives them back: two to three times less throughput for
messages of 9.6 MB. The price is a resident size that stays at its peak.
"""

import ctypes
import platform

_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 32 << 20),  # the most glibc allows
    "MALLOC_TRIM_THRESHOLD_": (-1, 1 << 30),
    "MALLOC_TOP_PAD_": (-2, 64 << 20),
    # Buffers come from one thread and are freed by another. With eight arenas a core each keeps a peak of its own,
    # which took a busy server half as much memory again; one moves a batch with the least processor time.
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""By environment variable: the parameter of mallopt, and its value."""

VARIABLES = {variable: str(value) for variable, (_, value) in _SETTINGS.items()}
"""What `tune_malloc` sets, for programs that do not call it."""


def tune_malloc() -> bool:
    """Keep large buffers in the heap between messages; call once, before threads start.

    Returns:
        Whether it did: other C libraries than glibc have no such knobs.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    for parameter, value in _SETTINGS.values():
        libc.mallopt(parameter, value)
    return True
