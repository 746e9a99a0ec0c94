"""Finds the source that a person named to `samix shards`."""

from pathlib import Path

from samix.errors import InputError
from services.shards.archives import CIFAR10, CIFAR100, cifar
from services.shards.sources import Source, digits, image_folder


def open_source(source: str, *, seed: int, digits_size: int) -> Source:
    """Open `digits`, `imagefolder:PATH`, `cifar10:PATH` or `cifar100:PATH`.

    Args:
        source: what a person wrote.
        seed: of the split of the digits, and of the order in which pictures are written.
        digits_size: side of the digits, pixels.

    Raises:
        InputError: if there is no such source or it holds no images.
    """
    kind, _, argument = source.partition(":")
    path = Path(argument).expanduser()
    if source == "digits":
        return digits(seed=seed, size=digits_size)
    if argument and kind == "imagefolder":
        return image_folder(path, seed=seed)
    if argument and kind == "cifar10":
        return cifar(CIFAR10, path, seed=seed)
    if argument and kind == "cifar100":
        return cifar(CIFAR100, path, seed=seed)
    raise InputError(f"no source is called {source!r}; use digits, imagefolder:PATH, cifar10:PATH or cifar100:PATH")
