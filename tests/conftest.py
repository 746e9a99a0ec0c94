"""What holds for every test."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

# The first call of an operation takes torch milliseconds more, and a busy machine any time: no example has a deadline.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A program under test sets up logging for its process; the next test must not write to its closed stderr."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
