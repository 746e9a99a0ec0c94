"""Long epochs of few shards: links to them, each many times."""

from collections.abc import Sequence
from pathlib import Path

from samix.errors import ConfigError
from services.shards.patterns import expand
from services.shards.shard import is_remote


def local_shards(pattern: str) -> list[Path]:
    """Find shards on this machine's disks.

    Raises:
        ShardError: if there are none.
        ConfigError: if one is elsewhere.
    """
    addresses = expand(pattern)
    for address in filter(is_remote, addresses):
        raise ConfigError(f"shards must be local files, got {address}; fetch it first")
    return [Path(address).resolve() for address in addresses]


def link_repeatedly(shards: Sequence[Path], folder: Path, times: int) -> str:
    """Link to all shards so many times. Returns a pattern with a range in braces, which webdataset reads too."""
    links = [*shards] * times
    for number, shard in enumerate(links):
        (folder / f"repeated-{number:06d}.tar").symlink_to(shard)
    return f"{folder}/repeated-{{000000..{len(links) - 1:06d}}}.tar"
