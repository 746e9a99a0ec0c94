"""Which shards a pattern names and how many samples each holds, from `index.json` where there is one.

Layouts of other tools are understood too: an entry {"shard", "samples", "bytes"} counts wherever it stands under
"splits". Shards that no index lists are counted by scanning their headers.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from samix.errors import ShardError
from services.shards.tar import scan_shard

INDEX_NAME = "index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSet:
    """Shards in the order of their names. A sample's position is its number across all of them."""

    paths: tuple[Path, ...]
    """One tar file each."""
    samples: tuple[int, ...]
    """Samples in each shard."""

    @property
    def total(self) -> int:
        """Number of samples, hence of positions."""
        return sum(self.samples)


def open_shards(pattern: str | Sequence[str]) -> ShardSet:
    """Find shards and count their samples.

    Args:
        pattern: a path, a glob, a brace pattern such as `train-{000000..000003}.tar`, or several of them. What exists
            under that very name is taken literally.

    Raises:
        ShardError: if nothing matches, or a shard is truncated or holds no samples.
    """
    paths = expand(pattern)
    indices = {folder: _read_index(folder / INDEX_NAME) for folder in {path.parent for path in paths}}
    samples = tuple(_count(path, indices[path.parent].get(path.name)) for path in paths)
    return ShardSet(paths=tuple(paths), samples=samples)


def expand(pattern: str | Sequence[str]) -> list[Path]:
    """Turn patterns into existing files, sorted, each once.

    Raises:
        ShardError: for a part of the pattern that names no local file.
    """
    parts = [pattern] if isinstance(pattern, str) else list(pattern)
    return sorted({path for part in parts for name in _braces(part) for path in _files(name)})


def escape(path: str | Path) -> str:
    """Spell a path so that it stands for itself inside a pattern."""
    return re.sub(r"[\\{}]", r"\\\g<0>", glob.escape(str(path)))


def _braces(pattern: str) -> Iterator[str]:
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ShardError(f"shards must be local files, got {pattern!r}; download them first")
    if _exists(pattern):
        return iter([pattern])
    try:
        return braceexpand(pattern)
    except ValueError as err:
        raise ShardError(f"shard pattern {pattern!r} has unbalanced braces; write {{000000..000003}}") from err


def _files(name: str) -> list[Path]:
    matches = [name] if _exists(name) else glob.glob(name, recursive=True)  # noqa: PTH207 - patterns may be absolute
    found = [Path(match) for match in matches]
    folders = [path for path in found if path.is_dir()]
    if folders:
        raise ShardError(f"{folders[0]} is a folder; name its shards, for example '{escape(folders[0])}/*.tar'")
    if not found:
        raise ShardError(f"no shard matches {name!r} (seen from {Path.cwd()}); check the path and quote the pattern")
    return found


def _exists(name: str) -> bool:
    return os.path.exists(name)  # noqa: PTH110 - Path.exists raises for a long pattern in braces


def _read_index(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise ShardError(f"{path} is not JSON ({err}); write it again with `samix shards`, or delete it") from err
    splits = index.get("splits") if isinstance(index, dict) else None
    return {entry["shard"]: entry for entry in _entries(splits)}


def _entries(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from _entries(item)
    elif isinstance(node, dict):
        if isinstance(node.get("shard"), str):
            yield node
        else:
            yield from _entries(list(node.values()))


def _count(path: Path, entry: dict[str, Any] | None) -> int:
    if entry is None:
        return len(scan_shard(path))
    samples, expected, actual = entry.get("samples"), entry.get("bytes"), path.stat().st_size
    if expected is not None and expected != actual:
        raise ShardError(f"{path} is {actual} bytes, its index says {expected}; truncated? Fetch or write it again")
    if not isinstance(samples, int) or samples < 1:
        raise ShardError(f"{path.parent / INDEX_NAME} gives {samples!r} samples for {path.name}; delete the index")
    return samples
