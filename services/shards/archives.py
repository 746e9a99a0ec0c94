"""The official archives of CIFAR-10 and CIFAR-100 (the "python version"), packed as downloaded or unpacked.

Their files are pickles of Python 2. A pickle may run whatever it likes, so they are read by `plain_pickle`, which runs
nothing: a file that asks for more is refused.
"""

import hashlib
import logging
import lzma
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np

from samix.errors import InputError
from services.shards.plain_pickle import PickledArray, load_plain
from services.shards.sources import Source, SourceImage

log = logging.getLogger(__name__)

_SIDE = 32
_MAX_FILE_BYTES = 512 * 2**20  # the largest official one has 155 MB


@dataclass(frozen=True, kw_only=True, slots=True)
class CifarLayout:
    """What one of the archives holds."""

    name: str
    """First part of the shards' names."""
    folder: str
    """Folder inside the archive."""
    md5: str
    """Of the official archive."""
    splits: Mapping[str, tuple[str, ...]]
    """Files of each split."""
    labels: bytes
    """Key of the labels in these files."""
    meta: str
    """File of the class names."""
    names: bytes
    """Key of the class names in that file."""


CIFAR10 = CifarLayout(
    name="cifar10",
    folder="cifar-10-batches-py",
    md5="c58f30108f718f92721af3b95e74349a",
    splits={"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    labels=b"labels",
    meta="batches.meta",
    names=b"label_names",
)
CIFAR100 = CifarLayout(
    name="cifar100",
    folder="cifar-100-python",
    md5="eb9058c3a382ffc7106e4002c42a8d85",
    splits={"train": ("train",), "test": ("test",)},
    labels=b"fine_labels",
    meta="meta",
    names=b"fine_label_names",
)


def cifar(layout: CifarLayout, path: Path, *, seed: int = 0) -> Source:
    """List the pictures of an archive, shuffled so that shards are mixed; they are written as PNG, without loss.

    Args:
        layout: CIFAR10 or CIFAR100.
        path: the .tar.gz as downloaded, the folder it unpacks to, or the folder that one lies in.
        seed: of the order of the pictures.

    Raises:
        InputError: if a file is missing, is not what it should be, or asks for code to be run.
    """
    read = _reader(layout, path)
    classes = _class_names(read(layout.meta), layout, path)
    rng, digest = np.random.default_rng(seed), hashlib.sha256()
    splits: dict[str, list[SourceImage]] = {}
    for split, files in layout.splits.items():
        images: list[SourceImage] = []
        for file in files:
            pixels, labels = _pictures(read(file), layout, f"{path}, {file}", len(classes))
            digest.update(pixels.tobytes())
            digest.update(labels.tobytes())
            images += [
                SourceImage(label, "png", picture) for label, picture in zip(labels.tolist(), pixels, strict=True)
            ]
        splits[split] = [images[i] for i in rng.permutation(len(images))]
    fingerprint = f"{layout.name} {digest.hexdigest()[:16]}, seed {seed}"
    return Source(name=layout.name, fingerprint=fingerprint, classes=classes, splits=splits)


def _reader(layout: CifarLayout, path: Path) -> Callable[[str], Any]:
    """Return what reads one file of the archive."""
    if path.is_dir():
        folder = path / layout.folder if (path / layout.folder).is_dir() else path
        return lambda name: _unpickled(_read_file(folder / name), str(folder / name))
    if not path.is_file():
        raise InputError(f"{path} is neither file nor folder; give the .tar.gz of {layout.name} or its folder")
    files = _unpacked(layout, path)
    _compare_checksum(layout, path)
    return lambda name: _unpickled(files[name], f"{path}, {name}")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise InputError(f"{path} cannot be read ({err.strerror}); unpack the archive again") from err


def _unpacked(layout: CifarLayout, path: Path) -> dict[str, bytes]:
    wanted = [layout.meta, *(file for files in layout.splits.values() for file in files)]
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                if folder != layout.folder or name not in wanted or not member.isreg():
                    continue
                if member.size > _MAX_FILE_BYTES:
                    raise InputError(f"{path} holds {member.name} of {member.size} bytes; fetch the official archive")
                content = tar.extractfile(member)
                assert content is not None  # it is a regular file
                files[name] = content.read()
            assert tar.fileobj is not None
            while tar.fileobj.read(1 << 20):  # tarfile stops before the checksum at the end of a compressed file
                pass
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as err:
        raise InputError(f"{path} is no complete archive ({err}); fetch it again") from err
    if missing := [name for name in wanted if name not in files]:
        raise InputError(f"{path} lacks {layout.folder}/{missing[0]}; fetch the python version of {layout.name}")
    return files


def _compare_checksum(layout: CifarLayout, path: Path) -> None:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != layout.md5:
        log.warning("archive_differs", extra={"archive": str(path), "md5": md5, "official": layout.md5})


def _unpickled(content: bytes, origin: str) -> dict[bytes, Any]:
    try:
        loaded = load_plain(content)
    except UnpicklingError as err:
        raise InputError(f"{origin} is no file of CIFAR ({err}); fetch the official archive") from err
    if not isinstance(loaded, dict):
        raise InputError(f"{origin} holds a {type(loaded).__name__}, no table; fetch the official archive")
    return {_as_bytes(key): value for key, value in loaded.items()}


def _class_names(meta: dict[bytes, Any], layout: CifarLayout, path: Path) -> tuple[str, ...]:
    names = meta.get(layout.names)
    if not isinstance(names, list) or not names or not all(isinstance(name, bytes | str) for name in names):
        raise InputError(f"{path}, {layout.meta} has no list {layout.names.decode()}; fetch the official archive")
    return tuple(_as_bytes(name).decode(errors="backslashreplace") for name in names)


def _pictures(
    batch: dict[bytes, Any], layout: CifarLayout, origin: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 [N, 32, 32, 3] and int64 [N]."""
    data, labels = batch.get(b"data"), batch.get(layout.labels)
    num_values = 3 * _SIDE * _SIDE
    rows = data.as_rows(num_values) if isinstance(data, PickledArray) else None
    if rows is None:
        raise InputError(
            f"{origin} has no pixels of type uint8 and shape [N, {num_values}]; fetch the official archive"
        )
    if not isinstance(labels, list) or len(labels) != len(rows) or not all(isinstance(label, int) for label in labels):
        raise InputError(
            f"{origin} has no {layout.labels.decode()} for each of its {len(rows)} pictures; fetch the official archive"
        )
    if wrong := [label for label in labels if not 0 <= label < num_classes]:
        raise InputError(f"{origin} has label {wrong[0]}, but {num_classes} class names; fetch the official archive")
    pixels = rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), np.array(labels, np.int64)


def _as_bytes(name: Any) -> Any:
    return (
        name.encode(errors="backslashreplace") if isinstance(name, str) else name
    )  # of an archive that Python 3 packed anew
