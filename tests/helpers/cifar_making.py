"""Small archives with the layout of CIFAR's: pickles as Python 2 wrote them, whose strings are bytes today."""

import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

CLASSES = {"cifar10": [f"class {number}" for number in range(10)], "cifar100": [f"fine {n}" for n in range(100)]}


class _Python2Pickler(pickle._Pickler):  # the one in Python: the one in C has no table to change
    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)  # pyright: ignore - unknown to typeshed
        self.memoize(value)  # pyright: ignore

    dispatch[bytes] = save_bytes  # pyright: ignore


def python2_pickle(value: Any) -> bytes:
    """Pickle with protocol 2, bytes as the `str` of Python 2, numpy under the name it had then."""
    file = io.BytesIO()
    _Python2Pickler(file, 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def picture(number: int) -> np.ndarray:
    """Draw picture `number` of an archive, uint8 [32, 32, 3]."""
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)


def cifar_files(kind: str, per_file: int = 4) -> dict[str, bytes]:
    """Make the files of an archive; picture i of all files is picture(i), its label 7 i modulo the classes."""
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"] if kind == "cifar10" else ["train", "test"]
    classes = CLASSES[kind]
    files: dict[str, bytes] = {}
    for number, name in enumerate(names):
        numbers = range(number * per_file, (number + 1) * per_file)
        rows = [picture(i).transpose(2, 0, 1).reshape(-1) for i in numbers]
        labels = [7 * i % len(classes) for i in numbers]
        content = {b"batch_label": name.encode(), b"data": np.stack(rows), b"filenames": [b"x.png"] * per_file}
        content |= (
            {b"labels": labels} if kind == "cifar10" else {b"fine_labels": labels, b"coarse_labels": [0] * per_file}
        )
        files[name] = python2_pickle(content)
    key = b"label_names" if kind == "cifar10" else b"fine_label_names"
    meta = {key: [name.encode() for name in classes], b"num_vis": 3072}
    files["batches.meta" if kind == "cifar10" else "meta"] = python2_pickle(meta)
    return files


def folder_name(kind: str) -> str:
    """Name the folder inside an archive."""
    return "cifar-10-batches-py" if kind == "cifar10" else "cifar-100-python"


def write_folder(path: Path, kind: str, files: dict[str, bytes]) -> Path:
    """Write an unpacked archive into a folder; returns the inner folder."""
    inner = path / folder_name(kind)
    inner.mkdir(parents=True)
    for name, content in files.items():
        (inner / name).write_bytes(content)
    return inner


def write_archive(path: Path, kind: str, files: dict[str, bytes]) -> Path:
    """Write a packed archive."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder_name(kind)}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
