"""Dealing an epoch to its consumers, and cutting batches into chunks: pure functions."""

from hypothesis import given
from hypothesis import strategies as st

from mixer_server.datasets.dealing import Deal
from mixer_server.datasets.messages import cut

DEALS = st.builds(
    Deal,
    num_samples=st.integers(1, 300),
    batch_size=st.integers(1, 20),
    num_consumers=st.integers(1, 9),
    drop_last=st.booleans(),
)


def rows_of(deal: Deal) -> list[int]:
    slices = [deal.rows(c, n) for c in range(deal.num_consumers) for n in range(deal.num_batches(c))]
    return sorted(row for rows in slices for row in range(rows.start, rows.stop))


@given(DEALS)
def test_every_sample_goes_to_one_consumer_once(deal: Deal):
    """Without drop_last the batches of all consumers hold every row of the order exactly once."""
    rows = rows_of(deal)

    assert len(set(rows)) == len(rows)
    if not deal.drop_last:
        assert rows == list(range(deal.num_samples))


@given(DEALS)
def test_no_consumer_is_ahead_by_more_than_a_batch(deal: Deal):
    """Consumers have equally many batches, but where fewer samples than consumers are left at the end."""
    counts = {deal.num_batches(consumer) for consumer in range(deal.num_consumers)}
    left = deal.num_samples - deal.num_rounds * deal.num_consumers * deal.batch_size

    assert max(counts) - min(counts) <= (0 if deal.drop_last or left >= deal.num_consumers or not left else 1)


@given(DEALS)
def test_batches_are_full_but_the_last(deal: Deal):
    """Only a consumer's last batch may be smaller, and with drop_last none is."""
    for consumer in range(deal.num_consumers):
        sizes = [
            deal.rows(consumer, number).stop - deal.rows(consumer, number).start
            for number in range(deal.num_batches(consumer))
        ]
        full = sizes if deal.drop_last else sizes[:-1]

        assert all(size == deal.batch_size for size in full)
        assert all(1 <= size <= deal.batch_size for size in sizes)


@given(DEALS)
def test_global_numbers_are_unique(deal: Deal):
    """No two batches of an epoch share the number that their mixing plans follow from."""
    numbers = [deal.global_number(c, n) for c in range(deal.num_consumers) for n in range(deal.num_batches(c))]

    assert len(set(numbers)) == len(numbers)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50))
def test_cutting_keeps_bytes_and_bounds(pieces: list[bytes], num_bytes: int):
    """Chunks hold all bytes in their order, and all but the last one are as large as they may be."""
    chunks = [b"".join(chunk) for chunk in cut([memoryview(piece) for piece in pieces], num_bytes)]

    assert b"".join(chunks) == b"".join(pieces)
    assert all(len(chunk) == num_bytes for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= num_bytes for chunk in chunks)
