"""Which shards a pattern names: globs and braces of local files, braces of addresses."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from braceexpand import braceexpand

from samix.errors import ShardError
from services.shards.shard import is_remote


def expand(pattern: str | Sequence[str], *, keep: Callable[[str], bool] = lambda _name: False) -> list[str]:
    """Turn patterns into addresses, sorted by folder and name, each once.

    Args:
        pattern: a path, a glob, a brace pattern, an http(s) URL or `pipe:` command with or without braces, or several
            of them. What exists under that very name is taken literally.
        keep: asked about each name that no file has; where it agrees the name is taken all the same.

    Raises:
        ShardError: for a part of the pattern that names nothing.
    """
    parts = [pattern] if isinstance(pattern, str) else list(pattern)
    return in_order(address for part in parts for name in _braces(part) for address in _addresses(name, keep))


def in_order(addresses: Iterable[str]) -> list[str]:
    """Sort by folder and name, each once."""
    return sorted(set(addresses), key=lambda address: Path(address).parts)


def globbed(pattern: str | Sequence[str], names: Iterable[str]) -> list[str]:
    """Choose those of some paths that a glob of a pattern would find, were they there; `**` finds none."""
    parts = [pattern] if isinstance(pattern, str) else list(pattern)
    globs = [Path(name) for part in parts for name in _braces(part) if not is_remote(name) and not _exists(name)]
    # As many parts: `match` looks at the last ones only.
    return [
        name
        for name in names
        if any(len(Path(name).parts) == len(one.parts) and Path(name).match(str(one)) for one in globs)
    ]


def escape(path: str | Path) -> str:
    """Spell a path so that it stands for itself inside a pattern."""
    return re.sub(r"[\\{}]", r"\\\g<0>", glob.escape(str(path)))


def _braces(pattern: str) -> Iterator[str]:
    if "://" in pattern and not is_remote(pattern):
        raise ShardError(
            f"shards are local files, http(s) addresses or pipe:COMMAND, got {pattern!r}; "
            f"write the command that prints one, for example 'pipe:aws s3 cp {pattern} -'"
        )
    if _exists(pattern):
        return iter([pattern])
    try:
        return braceexpand(pattern)
    except ValueError as err:
        raise ShardError(f"shard pattern {pattern!r} has unbalanced braces; write {{000000..000003}}") from err


def _addresses(name: str, keep: Callable[[str], bool]) -> list[str]:
    if is_remote(name):
        return [name]
    matches = [name] if _exists(name) else glob.glob(name, recursive=True)  # noqa: PTH207 - patterns may be absolute
    found = [Path(match) for match in matches]
    folders = [path for path in found if path.is_dir()]
    if folders:
        raise ShardError(f"{folders[0]} is a folder; name its shards, for example '{escape(folders[0])}/*.tar'")
    if not found and keep(name):
        return [str(Path(name))]
    if not found:
        raise ShardError(f"no shard matches {name!r} (seen from {Path.cwd()}); check the path and quote the pattern")
    return [str(path) for path in found]


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 - Path.exists raises for a long pattern in braces
