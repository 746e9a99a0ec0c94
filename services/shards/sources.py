"""What `samix shards` can read by itself: scikit-learn's handwritten digits, and folders of images.

A source lists its pictures; their bytes are read when they are written, so that a set may be larger than memory.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from samix.errors import InputError
from services.shards.tar import IMAGE_EXTENSIONS

SPLIT_NAMES = ("train", "val", "test", "valid", "validation")


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One labelled image of a source."""

    label: int
    extension: str
    """One of IMAGE_EXTENSIONS."""
    content: bytes | Path | np.ndarray
    """The encoded image, the file that holds it, or its pixels, uint8 [H, W, 3], which become a PNG."""

    def read(self) -> bytes:
        """Return the encoded image."""
        if isinstance(self.content, np.ndarray):
            return _png(Image.fromarray(self.content))
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A labelled set of images, in splits and in the order in which they will be written."""

    name: str
    """First part of the shards' names."""
    fingerprint: str
    """Changes with anything that changes the pictures; equal sets on two machines have equal ones."""
    classes: tuple[str, ...]
    """Name of each label."""
    splits: Mapping[str, Sequence[SourceImage]]


def digits(*, seed: int = 0, size: int = 32) -> Source:
    """List scikit-learn's 1797 handwritten digits of 8 x 8 pixels as greyscale PNG, a fifth of each class as test set.

    Args:
        seed: of the split and the order.
        size: side they are enlarged to (bicubic), so that they can be looked at and fit models for small images.

    Raises:
        InputError: if `size` is not positive, or scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise InputError("the digits are scikit-learn's: pip install 'samix-service[digits]'")
    from sklearn.datasets import load_digits  # slow to import, and nothing else here needs it

    if size < 1:
        raise InputError(f"digits cannot be {size} pixels wide; use 8 for their own size, or 32")
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    rng = np.random.default_rng(seed)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: len(members) // 5]] = True
    splits = {"train": rng.permutation(np.flatnonzero(~is_test)), "test": rng.permutation(np.flatnonzero(is_test))}
    return Source(
        name="digits",
        fingerprint=f"scikit-learn digits, {size} px, seed {seed}",
        classes=tuple("0123456789"),
        splits={
            split: [SourceImage(int(labels[i]), "png", _png(_enlarged(pixels[i], size))) for i in rows]
            for split, rows in splits.items()
        },
    )


def image_folder(root: Path, *, seed: int = 0) -> Source:
    """List ROOT/[SPLIT/]CLASS/*.jpg; classes in the order of their names, pictures shuffled so that shards are mixed.

    Folders called train, val, test, valid or validation are splits, if ROOT holds nothing else; without them everything
    is split `train`.

    Raises:
        InputError: if the folder or one of its classes holds no images.
    """
    folders = _subfolders(root)
    are_splits = all(folder.name in SPLIT_NAMES for folder in folders)
    split_roots = {folder.name: folder for folder in folders} if are_splits else {"train": root}
    classes = tuple(sorted({folder.name for split in split_roots.values() for folder in _subfolders(split)}))
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {split: _class_pictures(folder, label_of) for split, folder in split_roots.items()}
    rng = np.random.default_rng(seed)
    return Source(
        name=root.resolve().name,
        fingerprint=f"image folder {_listing_digest(root, splits)}, seed {seed}",
        classes=classes,
        splits={split: [pictures[i] for i in rng.permutation(len(pictures))] for split, pictures in splits.items()},
    )


def _enlarged(pixels: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _subfolders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise InputError(f"{root} is no folder; give the folder that holds one folder per class")
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise InputError(f"{root} holds no folders; images belong in {root}/CLASS/ or {root}/SPLIT/CLASS/")
    return folders


def _class_pictures(root: Path, label_of: Mapping[str, int]) -> list[SourceImage]:
    pictures: list[SourceImage] = []
    for folder in _subfolders(root):
        files = sorted(file for file in folder.iterdir() if _is_picture(file))
        if not files:
            raise InputError(f"{folder} holds no image ({', '.join(IMAGE_EXTENSIONS)}); remove it or fill it")
        pictures += [SourceImage(label_of[folder.name], _extension(file), file) for file in files]
    return pictures


def _is_picture(file: Path) -> bool:
    is_hidden = file.name.startswith(".")  # macOS leaves ._a.jpg beside a.jpg
    return _extension(file) in IMAGE_EXTENSIONS and not is_hidden


def _extension(file: Path) -> str:
    return file.suffix.lower().removeprefix(".")


def _listing_digest(root: Path, splits: Mapping[str, Sequence[SourceImage]]) -> str:
    digest = hashlib.sha256()
    for picture in (picture for pictures in splits.values() for picture in pictures):
        assert isinstance(picture.content, Path)
        digest.update(f"{picture.content.relative_to(root)} {picture.content.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
