"""Errors of files that know their file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an OSError of the block name this file: that of a write to a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise
