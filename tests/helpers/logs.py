"""Logging as it was: programs under test set it up for their whole process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_logging() -> Iterator[None]:
    """Take back what the block does to logging: the next test must not write to its closed stderr, nor see its level.

    For fixtures of a module or session, too, which run a program before the fixture of the same name takes hold.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.captureWarnings(False)
