"""Bulk bytes that come in pieces are the same bytes, wherever they were cut."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from samix.framing import as_bytes
from samix.pieces import Pieces, ScatteredPixels

LARGE = 64 << 10


def cut(values: np.ndarray, lengths: list[int]) -> Pieces:
    """Add the bytes in pieces of these lengths, and the rest in one."""
    pieces, start = Pieces(), 0
    for length in [*lengths, len(values)]:
        piece = as_bytes(values)[start : start + length]
        pieces.add(piece)
        start += len(piece)
    return pieces


@given(st.lists(st.sampled_from([0, 1, 7, LARGE - 1, LARGE, LARGE + 3]), max_size=12))
def test_pieces_hold_the_bytes_in_their_order(lengths: list[int]) -> None:
    """However bytes are cut, joining them gives the same bytes."""
    values = np.random.default_rng(0).integers(0, 256, 5 * LARGE, np.uint8)

    pieces = cut(values, lengths)

    assert len(pieces) == len(values)
    assert pieces.join() == as_bytes(values)


def test_a_large_piece_is_not_copied() -> None:
    """The bytes of a large piece stay where they came."""
    values = np.zeros(2 * LARGE, np.uint8)
    pieces = cut(values, [LARGE])

    values[:] = 7

    assert set(pieces.join()) == {7}


def test_small_pieces_take_no_object_each() -> None:
    """A batch that comes byte by byte is held as few objects."""
    pieces = Pieces()

    for _ in range(1000):
        pieces.add(memoryview(b"x"))

    assert len(list(pieces)) == 1


@given(st.lists(st.integers(1, 3 * LARGE), max_size=5), st.sampled_from([np.uint8, np.float32]))
def test_pixels_are_put_where_they_are_wanted(lengths: list[int], dtype: type) -> None:
    """Pixels in pieces become those of the batch, as bytes or as numbers of another type."""
    shape = (4, 3, 100, 150)
    values = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    pixels = ScatteredPixels(pieces=cut(values.reshape(-1), lengths), shape=shape)

    out = np.empty(shape, dtype)
    pixels.copy_to(out)

    assert (out == values).all()
    assert (pixels.join() == values).all()
    assert (len(pixels), pixels.nbytes, pixels.dtype) == (4, values.nbytes, np.uint8)
