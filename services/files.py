"""Files that are whole or as they were, and errors that know their file."""

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


def replace_text(path: Path, text: str) -> None:
    """Write a file in one piece: whoever reads it meanwhile finds the old one whole, or the new one.

    Raises:
        OSError: naming the file.
    """
    temporary = path.with_suffix(f"{path.suffix}.partial")  # which a pattern such as *.json does not match
    with naming(path):
        temporary.write_text(text)
        temporary.replace(path)
