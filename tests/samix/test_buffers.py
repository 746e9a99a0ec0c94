"""Buffers of answers are used again, but never while somebody may look at one."""

import numpy as np
import torch

from samix.client.buffers import Buffers
from samix.framing import as_bytes


def test_a_buffer_that_nobody_uses_is_used_again() -> None:
    """Once all views of a buffer are gone, the next answer of its size gets the same memory."""
    buffers = Buffers()
    first = buffers.take(100)
    place = first.ctypes.data
    del first

    assert buffers.take(100).ctypes.data == place


def test_a_buffer_in_use_is_left_alone() -> None:
    """A buffer is not handed out again while a view, a memoryview or a tensor of it lives."""
    buffers = Buffers()
    views = [
        np.frombuffer(as_bytes(buffers.take(100)), np.float16).reshape(5, 10),
        as_bytes(buffers.take(100))[10:20],
        torch.from_numpy(buffers.take(100)).view(10, 10)[1:],
    ]

    others = [buffers.take(100) for _ in range(3)]
    for other in others:
        other[:] = 1
    views[0][:], views[2][:] = 2, 3  # pyright: ignore[reportArgumentType]

    assert len({other.ctypes.data for other in others}) == 3
    assert all((other == 1).all() for other in others)


def test_few_buffers_are_kept() -> None:
    """However many answers are looked at at once, only a few buffers are kept."""
    buffers = Buffers()

    held = [buffers.take(10) for _ in range(50)]

    assert len(buffers._kept) <= 8
    assert len({buffer.ctypes.data for buffer in held}) == 50
