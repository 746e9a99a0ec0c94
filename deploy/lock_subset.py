"""Print the part of requirements.lock that an image needs: `lock_subset.py --extras server --without torch`.

Nothing is resolved anew: the lock names beside each package, after `# via`, which packages asked for it, and walking
those lines backwards finds what a package needs. What some other package asked of it by an extra would come along, and
is left out by --skip; `pip check` in the image tells whether that was right. Needs the standard library alone, since it
runs before anything is installed.
"""

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)(\[[^\]]*\])?==")
_PROJECT = "samix-service"


class NotInLock(ValueError):
    """What was asked for does not stand in pyproject.toml or in the lock."""


@dataclass(frozen=True)
class Entry:
    """One pinned version of a package; there are two where Python versions differ."""

    name: str
    """Normalised."""
    requirement: str
    """Version, marker and hashes, as pip reads them."""
    wanted_by: frozenset[str]
    """Packages that depend on it, normalised."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lock_subset.py [--extras EXTRA ...] [--packages NAME ...] [--without NAME ...] [--skip NAME ...]`.

    Returns:
        0, or 2 with a sentence if something asked for is not there.
    """
    args = _parser().parse_args(argv)
    entries = read_lock((args.root / "requirements.lock").read_text())
    project = tomllib.loads((args.root / "pyproject.toml").read_text())["project"]
    try:
        roots = [*args.packages, *(direct_requirements(project, args.extras) if args.extras else ())]
        wanted = closure(entries, roots, args.skip) - closure(entries, args.without, args.skip)
    except NotInLock as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(entry.requirement for entry in entries if entry.name in wanted))
    return 0


def read_lock(text: str) -> list[Entry]:
    """Read a lock as `uv pip compile --generate-hashes` writes it."""
    entries, block = [], []
    for line in [*text.splitlines(), "end"]:
        if line[:1].strip() and not line.startswith("#") and block:
            entries.append(_entry(block))
            block = []
        block.append(line)
    return entries


def direct_requirements(project: dict, extras: Iterable[str]) -> list[str]:
    """List what the project itself needs, and what its extras add.

    Args:
        project: the table `project` of pyproject.toml.
        extras: names of its optional dependencies.

    Raises:
        NotInLock: for an extra that it does not have.
    """
    known = project["optional-dependencies"]
    requirements = list(project["dependencies"])
    for extra in extras:
        if extra not in known:
            raise NotInLock(f"pyproject.toml has no extra {extra!r}; it has {', '.join(known)}")
        requirements += known[extra]
    return [re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements]


def closure(entries: Iterable[Entry], roots: Iterable[str], skip: Iterable[str] = ()) -> set[str]:
    """Name packages and all that they need, but for those to skip and what only these need.

    Raises:
        NotInLock: for a root that is not in the lock.
    """
    needs: dict[str, set[str]] = {entry.name: set() for entry in entries}
    for entry in entries:
        for parent in entry.wanted_by & needs.keys():
            needs[parent].add(entry.name)
    found: set[str] = set()
    skipped = {_normalised(name) for name in skip}
    waiting = [_normalised(root) for root in roots]
    while waiting:
        name = waiting.pop()
        if name not in needs:
            raise NotInLock(f"{name} is not in requirements.lock; run `make lock` after a change of pyproject.toml")
        if name not in found:
            found.add(name)
            waiting += needs[name] - skipped
    return found


def _entry(block: list[str]) -> Entry:
    match = _ENTRY.match(block[0])
    if match is None:
        raise ValueError(f"requirements.lock has a line that pins nothing: {block[0]!r}; run `make lock`")
    comments = [
        line.strip().removeprefix("#").removeprefix(" via").strip() for line in block if line.lstrip()[:1] == "#"
    ]
    wanted_by = {_normalised(comment.split(" ")[0]) for comment in comments if comment}
    requirement = "\n".join(line for line in block if line.lstrip()[:1] != "#")
    return Entry(_normalised(match["name"]), requirement, frozenset(wanted_by - {_PROJECT, "c"}))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower().strip("-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print the part of requirements.lock that an image needs.")
    parser.add_argument("--extras", nargs="*", default=[], help="the project with these extras")
    parser.add_argument("--packages", nargs="*", default=[], help="these packages")
    parser.add_argument("--without", nargs="*", default=[], help="but for these packages and all that they need")
    parser.add_argument("--skip", nargs="*", default=[], help="never follow these, which something else asked for")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of pyproject.toml and requirements.lock")
    return parser


if __name__ == "__main__":
    sys.exit(main())
