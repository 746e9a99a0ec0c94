"""Whether shards are there, as their index says, and can be decoded; a sample of them, for all there is `--check`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from samix.errors import InputError, ShardError
from services.doctor.findings import Finding, failure_of, lacking, ok, unchecked, warning
from services.shards.remote import Patience
from services.shards.shard import PIPE, Shard, folder_of, is_remote

if TYPE_CHECKING:
    from services.shards.index import ShardSet

_MOST_READ = 8
_PATIENCE = Patience(silence_s=10.0, attempt_s=60.0, pauses_s=())


def check_shards(pattern: str) -> Finding:
    """Look at the shards that one pattern names: paths, globs, braces, URLs or a `pipe:` command."""
    check = f"shards {pattern}"
    if pattern.startswith(PIPE):
        return unchecked(check, "a command that prints shards is not run here", "samix shards --check PATTERN runs it")
    try:
        return _check_remote(check, pattern) if is_remote(pattern) else _check_local(check, pattern)
    except ModuleNotFoundError as error:
        return lacking(check, error, "trainer")
    except (InputError, OSError) as error:
        return failure_of(check, error)


def _check_local(check: str, pattern: str) -> Finding:
    from services.shards.index import open_shards

    shards = open_shards(pattern)
    chosen = _spread(len(shards.shards))
    _read_first_samples(shards, chosen)
    which = "each" if len(chosen) == len(shards.shards) else f"{len(chosen)} of them"
    has_index = all(shard.num_bytes is not None for shard in shards.shards)
    against = "sizes match the index" if has_index else "there is no index beside them"
    return ok(
        check,
        f"{shards.total} samples in {len(shards.shards)} shards; {against}, the first picture of {which} can be "
        "decoded; `samix shards --check` reads all",
    )


def _read_first_samples(shards: "ShardSet", chosen: Sequence[int]) -> None:
    from services.shards.decode import open_picture
    from services.shards.reader import SampleReader

    with SampleReader(shards) as reader:
        for number in chosen:
            # Opening a shard also counts its samples and compares with the index.
            open_picture(reader.read(sum(shards.samples[:number]))).load()


def _check_remote(check: str, pattern: str) -> Finding:
    from services.shards.index_file import INDEX_NAME, read_index
    from services.shards.patterns import expand

    addresses = expand(pattern)
    index = read_index(f"{folder_of(addresses[0])}/{INDEX_NAME}", _PATIENCE)
    entries = [index.entry(address) if index else None for address in addresses]
    for address, entry in ((addresses[0], entries[0]), (addresses[-1], entries[-1])):
        num_bytes = _remote_size(address)
        if entry is not None and num_bytes is not None:
            Shard(address=address, num_bytes=entry.num_bytes).check_size(num_bytes)
    unlisted = sum(entry is None for entry in entries)
    if unlisted:
        told = f"{len(addresses)} shards are there, {unlisted} of them in no index.json beside them"
        return warning(check, told, "put the index.json of `samix shards` there; else all are fetched to be counted")
    samples = sum(entry.samples for entry in entries if entry)
    return ok(check, f"{samples} samples in {len(addresses)} shards by their index; the first and the last are there")


def _remote_size(address: str) -> int | None:
    request = Request(address, method="HEAD", headers={"User-Agent": "samix"})
    try:
        with urlopen(request, timeout=_PATIENCE.silence_s) as response:
            length = response.headers.get("Content-Length", "")
    except HTTPError as error:
        with error:
            raise ShardError(f"{address} answers {error.code} {error.reason}; check address and rights") from error
    except URLError as error:
        raise ShardError(f"{address} cannot be reached ({error.reason}); check the address and the network") from error
    return int(length) if length.isdigit() else None


def _spread(num_shards: int) -> list[int]:
    """Choose some shards, first and last among them."""
    if num_shards <= _MOST_READ:
        return list(range(num_shards))
    return [round(step * (num_shards - 1) / (_MOST_READ - 1)) for step in range(_MOST_READ)]
