"""Writes a source as tar shards with an index, reproducibly and all or nothing.

Everything is written to a hidden folder inside the target first, then moved, the index last: who sees an index sees a
whole set. Equal sources give equal bytes (no times, no owners).
"""

import contextlib
import hashlib
import io
import json
import logging
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samix.errors import ConfigError, InputError
from services.shards.index import INDEX_NAME
from services.shards.sources import Source, SourceImage
from services.shards.tar import LABEL_EXTENSION

log = logging.getLogger(__name__)

INDEX_FORMAT = 1


def write_shards(
    source: Source,
    out: Path,
    *,
    samples_per_shard: int = 1000,
    overwrite: bool = False,
    on_sample: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Write NAME-SPLIT-NNNNNN.tar for each split, and index.json.

    Args:
        source: what to write.
        out: folder of the shards; made if needed. A set with the same source and settings is left as it is.
        samples_per_shard: size of all shards of a split but its last.
        overwrite: replace another set in `out`; files that belong to no set are never touched.
        on_sample: called after each sample, for progress.

    Returns:
        The index.

    Raises:
        InputError: if `out` holds something else, or `samples_per_shard` is not positive.
        OSError: if a picture cannot be read or the disk is full; then nothing is left behind.
    """
    if samples_per_shard < 1:
        raise ConfigError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    origin = f"{source.fingerprint}, {samples_per_shard} per shard"
    present = _present_index(out)
    if present and present["origin"] == origin and _is_complete(present, out) and not overwrite:
        log.info("shards_kept", extra={"out": str(out), "origin": origin})
        return present
    _refuse_foreign(out, present, overwrite=overwrite)
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=".unfinished-") as folder:
            index = _write_all(source, Path(folder), samples_per_shard, origin, on_sample)
            _publish(Path(folder), out, present)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # somebody else may have put a file there meanwhile
                out.rmdir()
        raise
    return index


def _write_all(
    source: Source, folder: Path, samples_per_shard: int, origin: str, on_sample: Callable[[], object]
) -> dict[str, Any]:
    splits: dict[str, Any] = {}
    for split, pictures in source.splits.items():
        shards = [
            _write_shard(folder / f"{source.name}-{split}-{number:06d}.tar", pictures, rows, on_sample)
            for number, rows in enumerate(_chunks(len(pictures), samples_per_shard))
        ]
        splits[split] = {"samples": len(pictures), "shards": shards}
    extensions = {picture.extension for pictures in source.splits.values() for picture in pictures}
    index = {
        "format": INDEX_FORMAT,
        "name": source.name,
        "origin": origin,
        "image": "|".join(sorted(extensions)),
        "splits": splits,
        "classes": source.classes,
    }
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return index


def _write_shard(
    path: Path, pictures: Sequence[SourceImage], rows: range, on_sample: Callable[[], object]
) -> dict[str, Any]:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in rows:
            picture = pictures[row]
            _add(tar, f"{row:08d}.{picture.extension}", picture.read())
            _add(tar, f"{row:08d}.{LABEL_EXTENSION}", str(picture.label).encode())
            on_sample()
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"shard": path.name, "samples": len(rows), "bytes": path.stat().st_size, "sha256": sha256}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # time, owner and group stay 0
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _chunks(total: int, size: int) -> list[range]:
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def _publish(folder: Path, out: Path, present: Mapping[str, Any] | None) -> None:
    if present is not None:
        (out / INDEX_NAME).unlink()
        for entry in _shards(present):
            (out / entry["shard"]).unlink(missing_ok=True)
    for shard in sorted(folder.glob("*.tar")):
        shard.replace(out / shard.name)
    (folder / INDEX_NAME).replace(out / INDEX_NAME)


def _present_index(out: Path) -> dict[str, Any] | None:
    path = out / INDEX_NAME
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    is_ours = isinstance(index, dict) and index.get("format") == INDEX_FORMAT and "origin" in index
    return index if is_ours else None


def _is_complete(index: Mapping[str, Any], out: Path) -> bool:
    files = [(out / entry["shard"], entry["bytes"]) for entry in _shards(index)]
    return all(file.exists() and file.stat().st_size == size for file, size in files)


def _shards(index: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [entry for split in index["splits"].values() for entry in split["shards"]]


def _refuse_foreign(out: Path, present: Mapping[str, Any] | None, *, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for the shards")
    ours = {INDEX_NAME, *(entry["shard"] for entry in _shards(present))} if present else set()
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in ours) if out.exists() else []
    if foreign:
        raise InputError(f"{out} holds other files ({foreign[0]}, {len(foreign)} in all); give an empty folder")
    if present and not overwrite:
        raise InputError(f"{out} holds another set ({present['origin']}); give another folder, or --overwrite")
