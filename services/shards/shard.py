"""One shard: where it lies, and what an index promises about it."""

import re
from dataclasses import dataclass
from pathlib import Path

from samix.errors import ShardError

PIPE = "pipe:"
"""WebDataset's mark of an address that is a shell command, whose output is the shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A tar file somewhere."""

    address: str
    """Local path, http(s) URL, or `pipe:` and a shell command."""
    num_bytes: int | None = None
    """Size by its index; None where no index says."""
    sha256: str = ""
    """Checksum by its index, 64 hexadecimal digits; empty where no index says."""

    def __str__(self) -> str:
        return self.address

    @property
    def path(self) -> Path | None:
        """The file of a local shard; None for a remote one."""
        return None if is_remote(self.address) else Path(self.address)

    def check_size(self, actual: int) -> None:
        """Compare with the index.

        Raises:
            ShardError: if the shard has another size.
        """
        if self.num_bytes is not None and actual != self.num_bytes:
            raise ShardError(
                f"{self} is {actual} bytes, its index says {self.num_bytes}; truncated? Fetch or write it again"
            )


def is_remote(address: str) -> bool:
    """Whether an address must be fetched before it can be read."""
    return address.startswith(("http://", "https://", PIPE))


def shard_name(address: str) -> str:
    """Find the name by which an index knows a shard: the file's, without folder or query; in a command its last tar."""
    if address.startswith(PIPE):
        files = re.findall(r"[^\s/'\"=]+\.tar\b", address)
        return files[-1] if files else address.removeprefix(PIPE)
    if is_remote(address):
        address = re.split(r"[?#]", address, maxsplit=1)[0]
    return address.rpartition("/")[2]


def folder_of(address: str) -> str | None:
    """Find where an index may lie beside a shard; None for a command, whose folder only its author knows."""
    if address.startswith(PIPE):
        return None
    if is_remote(address):
        return re.split(r"[?#]", address, maxsplit=1)[0].rpartition("/")[0]
    return str(Path(address).parent)
