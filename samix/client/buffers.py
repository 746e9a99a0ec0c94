"""Room for answers that come in chunks, used again once nobody looks at an answer any more.

Fresh memory costs more than the copy into it: the kernel clears each page, 2 ms for a batch of 9.6 MB.
"""

import sys

import numpy as np

from samix.framing import empty_buffer

_MOST = 8
"""Buffers that are kept: as many answers as a caller may look at while others come."""
_NOBODY = 3
"""References to a buffer that nobody uses, as `_is_free` sees them: the list's, the argument's, and getrefcount's."""


class Buffers:
    """Hands out buffers; for one thread. Views of a buffer keep it in use, so there is nothing to give back."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []

    def take(self, num_bytes: int) -> np.ndarray:
        """Return uint8 [num_bytes], writable, not initialised, that nobody else refers to."""
        for index in range(len(self._kept)):
            if len(self._kept[index]) == num_bytes and _is_free(self._kept[index]):
                return self._kept[index]
        buffer = empty_buffer(num_bytes)
        if num_bytes:
            self._kept = [*self._kept[1 - _MOST :], buffer]
        return buffer


def _is_free(buffer: np.ndarray) -> bool:
    return sys.getrefcount(buffer) <= _NOBODY
