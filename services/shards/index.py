"""Which shards there are and how many samples each holds, from `index.json` where there is one.

Local shards that no index lists are counted by scanning their headers, remote ones by fetching them.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from samix.errors import ShardError
from services.shards.cache import ShardCache
from services.shards.index_file import INDEX_NAME, Index, IndexEntry, read_index
from services.shards.patterns import expand, globbed, in_order
from services.shards.shard import Shard, folder_of, is_remote, shard_name
from services.shards.tar import scan_file, scan_shard

log = logging.getLogger(__name__)

FETCHES_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSet:
    """Shards in the order of their names. A sample's position is its number across all of them."""

    shards: tuple[Shard, ...]
    """One tar file each."""
    samples: tuple[int, ...]
    """Samples in each shard."""
    cache: ShardCache
    """Where remote shards are kept."""
    classes: tuple[str, ...] = ()
    """Name of each label; empty where no index says."""

    @property
    def total(self) -> int:
        """Number of samples, hence of positions."""
        return sum(self.samples)

    @property
    def has_remote(self) -> bool:
        """Whether some of it must be fetched."""
        return any(shard.path is None for shard in self.shards)


def open_shards(
    pattern: str | Sequence[str], *, cache: ShardCache | None = None, index: str = "", tolerant: bool = False
) -> ShardSet:
    """Find shards and count their samples.

    Args:
        pattern: a path, a glob, a brace pattern such as `train-{000000..000003}.tar`, an http(s) URL or `pipe:` command
            with or without braces, or several of them. What exists under that very name is taken literally.
        cache: where remote shards are kept; None takes the default folder.
        index: path or address of the index; empty takes the `index.json` beside the shards, if there is one.
        tolerant: accept listed shards that are missing or of another size; they fail when they are read.

    Raises:
        ShardError: if nothing matches, a shard is truncated or holds no samples, or one that an index lists and a glob
            names is not there.
    """
    cache = cache or ShardCache()
    indices = _Indices(cache=cache, given=index)
    addresses = expand(pattern, keep=lambda name: tolerant and indices.entry(name) is not None)
    addresses = in_order([*addresses, *_gone(pattern, addresses, indices, tolerant=tolerant)])
    entries = [indices.entry(address) for address in addresses]
    shards = tuple(map(_shard, addresses, entries))
    for shard, entry in zip(shards, entries, strict=True):
        if entry is not None:
            _check(shard, tolerant=tolerant)
    return ShardSet(shards=shards, samples=_samples(shards, entries, cache), cache=cache, classes=indices.classes())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Indices:
    """The indices of the folders in question, each read once."""

    cache: ShardCache
    given: str
    by_source: dict[str, Index | None] = field(default_factory=dict)

    def entry(self, address: str) -> IndexEntry | None:
        index = self._index_of(address)
        entry = index.entry(address) if index else None
        if entry is None and self.given:
            raise ShardError(
                f"index {self.given} does not list {shard_name(address)}; correct the pattern or the index"
            )
        return entry

    def listed_beside(self, address: str) -> list[str]:
        """List the local shards of the index in the folder of a shard; none where one index is given for all."""
        index = None if self.given or is_remote(address) else self._index_of(address)
        return [str(Path(address).parent / name) for name in index.entries] if index else []

    def classes(self) -> tuple[str, ...]:
        return next((index.classes for index in self.by_source.values() if index and index.classes), ())

    def _index_of(self, address: str) -> Index | None:
        folder = folder_of(address)
        source = self.given or (f"{folder}/{INDEX_NAME}" if folder is not None else "")
        if not source:
            return None
        if source not in self.by_source:
            self.by_source[source] = read_index(source, self.cache.patience, must_exist=bool(self.given))
        return self.by_source[source]


def _gone(pattern: str | Sequence[str], found: Sequence[str], indices: _Indices, *, tolerant: bool) -> list[str]:
    """Find the shards that a glob names and an index lists, but that are not there."""
    folders = {folder_of(address): address for address in found}
    listed = {name for address in folders.values() for name in indices.listed_beside(address)}
    gone = globbed(pattern, sorted(listed - {*found}))
    if gone and not tolerant:
        raise ShardError(
            f"{gone[0]} is not there, but the index beside it lists it ({len(gone)} such in all); fetch it, write the "
            "index again, or name the shards to be read, as in train-{000000..000003}.tar"
        )
    return gone


def _shard(address: str, entry: IndexEntry | None) -> Shard:
    if entry is None:
        return Shard(address=address)
    return Shard(address=address, num_bytes=entry.num_bytes, sha256=entry.sha256)


def _check(shard: Shard, *, tolerant: bool) -> None:
    if shard.path is None:
        return
    try:
        shard.check_size(shard.path.stat().st_size)
    except (ShardError, OSError) as err:
        if not tolerant:
            raise
        log.warning("shard_unusable", extra={"shard": shard.address, "reason": str(err)})


def _samples(shards: Sequence[Shard], entries: Sequence[IndexEntry | None], cache: ShardCache) -> tuple[int, ...]:
    unlisted = [shard for shard, entry in zip(shards, entries, strict=True) if entry is None]
    counts = _count(unlisted, cache)
    return tuple(
        entry.samples if entry else counts[shard.address] for shard, entry in zip(shards, entries, strict=True)
    )


def _count(shards: Sequence[Shard], cache: ShardCache) -> dict[str, int]:
    counts = {shard.address: len(scan_shard(shard.path)) for shard in shards if shard.path is not None}
    remote = [shard for shard in shards if shard.path is None]
    if not remote:
        return counts
    log.warning("shards_fetched_to_be_counted", extra={"shards": len(remote), "cure": "name an index"})

    def count(shard: Shard) -> int:
        with cache.open(shard) as file:
            return len(scan_file(file, shard.address))

    with ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="count-shards") as pool:
        try:
            for shard, samples in zip(remote, pool.map(count, remote), strict=True):
                counts[shard.address] = samples
                log.info("shard_counted", extra={"shard": shard.address, "done": len(counts), "of": len(shards)})
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return counts
