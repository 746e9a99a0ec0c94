"""The `samix` command: finds its verbs through entry points, so that nothing here imports the programs above.

A verb is an entry point of group `samix.commands` whose target is `main(argv=None) -> int | None`. Its line in the help
is the first line of the target module's docstring, read from source: importing every verb would import torch for help.
"""

import ast
import importlib.util
import os
import re
import select
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points, version
from pathlib import Path

USAGE = "usage: samix VERB [--flags]\n       samix VERB --help\n       samix --version"

STDOUT = 1
SIGPIPE_STATUS = 141
"""What a shell reports for other tools whose reader left, as `head` does."""


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one verb and return its exit status.

    Returns:
        2 for a verb that is not given, does not exist or lacks packages; 130 if it is interrupted while it is imported,
        141 if nobody reads its output any more; else what the verb returns.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        if not _reader_left():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)  # else the interpreter complains when it flushes at its end
        return SIGPIPE_STATUS


def _run(argv: Sequence[str]) -> int | None:
    verbs = {verb.name: verb for verb in sorted(entry_points(group="samix.commands"), key=lambda verb: verb.name)}
    if not argv:
        print(help_text(verbs), file=sys.stderr)
        return 2
    name, *flags = argv
    if name in ("-h", "--help"):
        return _say(help_text(verbs))
    if name in ("-V", "--version"):
        return _say(f"samix {version('samix-service')}")
    if name not in verbs:
        return _fail(f"no verb is called {name!r}; `samix --help` lists {', '.join(verbs)}")
    if missing := missing_packages(verbs[name]):
        return _fail(f"`samix {name}` needs {', '.join(missing)}; run {_cure(verbs[name])}")
    # Before a verb imports gRPC, which else writes a line for every handshake that fails: as many as strangers like.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        return verbs[name].load()(flags)
    finally:
        print(end="", flush=True)  # a reader that left shows here at the latest, not when the interpreter ends


def _reader_left() -> bool:
    poll = select.poll()
    poll.register(STDOUT, 0)  # errors alone
    return bool(poll.poll(0))


def help_text(verbs: Mapping[str, EntryPoint]) -> str:
    """List what this installation can run, then what it could run with another extra."""
    ready = [verb for verb in verbs.values() if not missing_packages(verb)]
    lines = [USAGE, "", "verbs:", *(f"  {verb.name:<18}{describe(verb)}" for verb in ready)]
    lacking = [verb for verb in verbs.values() if verb not in ready]
    if lacking:
        lines += ["", "not installed:", *(f"  {verb.name:<18}{_cure(verb)}" for verb in lacking)]
    return "\n".join(lines)


def describe(verb: EntryPoint) -> str:
    """Read the first line of a verb's module docstring without running the module."""
    try:
        spec = importlib.util.find_spec(verb.module)
    except ModuleNotFoundError:  # of the package that should hold the module
        spec = None
    if spec is None or spec.origin is None:
        return f"(module {verb.module} is missing)"
    module = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def missing_packages(verb: EntryPoint) -> list[str]:
    """Name the packages of a verb's extras that are not installed."""
    requirements = (verb.dist.requires if verb.dist else None) or []
    needed = {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        for requirement in requirements
        for extra in re.findall(r"""extra\s*==\s*["']([\w.-]+)["']""", requirement)
        if extra in verb.extras
    }
    return sorted(package for package in needed if not _is_installed(package))


def _is_installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _cure(verb: EntryPoint) -> str:
    assert verb.dist is not None  # every entry point found by entry_points() belongs to a distribution
    return f"pip install '{verb.dist.name}[{','.join(verb.extras)}]'"


def _say(text: str) -> int:
    print(text, flush=True)
    return 0


def _fail(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
