"""Print what the images weigh, layer by layer: the base, torch with what it needs, and what is ours.

`image_sizes.py [IMAGE ...]` ends with 1 if ours is heavier than --limit-mb. Needs docker and the standard library.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

_IMAGES = ("samix/mixer:local", "samix/trainer:local")
_TORCH = "/torch.txt"
"""Stands in the command that made torch's layer; everything before it is the base."""


class NoImage(RuntimeError):
    """There is no such image, or it is none of ours."""


@dataclass(frozen=True)
class Weights:
    """Bytes, before compression."""

    base: int
    """What the image was built on."""
    torch: int
    """torch and torchvision with their requirements, shared by all our images."""
    ours: int
    """The rest: other packages, and the project."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `image_sizes.py [IMAGE ...] [--limit-mb MB]`.

    Returns:
        0, 1 if an image is too heavy, 2 if there is none.
    """
    args = _parser().parse_args(argv)
    is_light = True
    print(f"{'image':<32}{'base':>10}{'torch':>10}{'ours':>10}   MB, of 10^6 bytes")
    for image in args.images:
        try:
            weights = weigh(image)
        except NoImage as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        columns = (weights.base, weights.torch, weights.ours)
        print(f"{image:<32}" + "".join(f"{size / 1e6:>10.1f}" for size in columns))
        is_light &= weights.ours <= args.limit_mb * 1e6
    if not is_light:
        print(f"error: more than {args.limit_mb:g} MB are ours", file=sys.stderr)
    return 0 if is_light else 1


def weigh(image: str) -> Weights:
    """Add up the layers of an image.

    Raises:
        NoImage: if docker does not have it, or it has no layer with torch.
    """
    form = ["--human=false", "--no-trunc", "--format", "{{.Size}} {{.CreatedBy}}"]
    answer = subprocess.run(["docker", "history", *form, image], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise NoImage(f"docker knows no image {image}: {answer.stderr.strip()}; `make up` builds ours")
    layers = [line.partition(" ") for line in reversed(answer.stdout.splitlines())]
    sizes = [int(size) for size, _, _ in layers]
    torch = next((place for place, (_, _, command) in enumerate(layers) if _TORCH in command), None)
    if torch is None:
        raise NoImage(f"{image} has no layer with torch; name an image that deploy/Dockerfile made")
    return Weights(sum(sizes[:torch]), sizes[torch], sum(sizes[torch + 1 :]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print what images weigh: their base, torch, and what is ours.")
    parser.add_argument("images", nargs="*", default=_IMAGES, help=f"images; default: {' '.join(_IMAGES)}")
    parser.add_argument("--limit-mb", type=float, default=150.0, help="most that is ours, in MB; default: 150")
    return parser


if __name__ == "__main__":
    sys.exit(main())
