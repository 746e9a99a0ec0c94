"""What holds for every test."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from logs import own_logging

# The first call of an operation takes torch milliseconds more, and a busy machine any time: no example has a deadline.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Each test leaves logging as it found it."""
    with own_logging():
        yield
