"""Copy the .proto files, from which any language generates a client."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run `samix protos --out DIR`.

    Returns:
        2 if the files cannot be written; else 0.
    """
    parser = argparse.ArgumentParser(prog="samix protos", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to copy them to, for `protoc -I DIR`")
    folder = parser.parse_args(argv).out
    try:
        copied = copy_protos(folder)
    except OSError as error:
        print(f"error: {error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    print("\n".join(str(path) for path in copied))
    return 0


def protos_folder() -> Path:
    """Find the root of the .proto files: beside this module in a wheel, beside the package in a checkout."""
    in_wheel, in_checkout = _PACKAGE / "protos", _PACKAGE.parent / "protos"
    return in_wheel if in_wheel.is_dir() else in_checkout


def copy_protos(folder: Path) -> list[Path]:
    """Copy all .proto files below a folder, each to the path by which the others import it.

    Returns:
        What was written, in order.

    Raises:
        OSError: if it cannot be written.
    """
    source, copied = protos_folder(), []
    for proto in sorted(source.rglob("*.proto")):
        target = folder / proto.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(proto, target)
        copied.append(target)
    return copied
