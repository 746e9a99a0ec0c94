"""Look for what keeps samix from working on this machine, and tell the cure of each failure."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import get_args

from samix.credential_flags import add_credential_flags, credentials_of
from samix.errors import ConfigError
from samix.targets import is_target
from services.addresses import check_port
from services.cli import program
from services.doctor.findings import Finding, Verdict, surviving, unchecked
from services.doctor.installation import check_installation
from services.doctor.machine import (
    check_cache,
    check_compiler,
    check_malloc,
    check_open_files,
    check_platform,
    check_processors,
    check_shared_memory,
)
from services.doctor.mixers import check_mixers
from services.doctor.ports import check_grpc_port, check_http_port, check_metrics_port, check_rank_ports
from services.doctor.servers import check_servers
from services.doctor.shards import check_shards
from services.doctor.torch_pair import check_gpu, check_torch, probe_torch
from services.shards.shard import is_remote

Check = tuple[str, Callable[[], Finding | list[Finding] | None]]
"""A name for the case that it breaks off, and what looks."""

_VERDICTS = get_args(Verdict)


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Run `samix doctor [--data SHARDS...] [--mixers FILES...] [--connect ADDRESS] [--json]`.

    Returns:
        1 if something will not work, else 0; 2 for wrong flags.
    """
    args = _parser().parse_args(argv)
    targets = _targets(args.connect)
    for port in (args.grpc_port, args.http_port, args.metrics_port, args.server_http_port):
        check_port(port)
    findings = []
    for finding in examine(args, targets):
        findings.append(finding)
        if not args.json:
            print(describe(finding), flush=True)  # as it comes: torch alone takes seconds
    counts = Counter(finding.verdict for finding in findings)
    if args.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings], **_summary(counts)}, indent=2))
    else:
        print(", ".join(f"{number} {verdict}" for verdict, number in _summary(counts).items()))
    return 1 if counts["failure"] else 0


def examine(args: argparse.Namespace, targets: Sequence[str]) -> Iterator[Finding]:
    """Make all checks, the quick ones first."""
    # One after another: torch is not probed before what was found until then is told.
    for name, check in chain(_machine_checks(args), _torch_checks(args), _given_checks(args, targets)):
        findings: list[Finding] = []
        with surviving(name, findings):
            found = check()
            findings += found if isinstance(found, list) else [found] if found else []
        yield from findings


def describe(finding: Finding) -> str:
    """Make one line of a finding, and one of its cure."""
    line = f"{finding.verdict:<10} {finding.check}: {finding.sentence}"
    return f"{line}\n{'':<10} -> {finding.cure}" if finding.cure else line


def _machine_checks(args: argparse.Namespace) -> list[Check]:
    has_remote = any(map(is_remote, args.data))
    return [
        ("installation", check_installation),
        ("system", check_platform),
        ("processors", check_processors),
        ("open files", check_open_files),
        ("shared memory", check_shared_memory),
        ("malloc", check_malloc),
        ("compiler", check_compiler),
        ("shard cache", lambda: check_cache(args.cache, args.cache_gb, is_needed=has_remote)),
        ("grpc port", lambda: check_grpc_port(args.host, args.grpc_port)),
        ("http port", lambda: check_http_port(args.host, args.http_port)),
        ("metrics port", lambda: check_metrics_port(args.host, args.metrics_port)),
        ("rank ports", lambda: check_rank_ports(args.host)),
    ]


def _torch_checks(args: argparse.Namespace) -> Iterator[Check]:
    probe = probe_torch()
    yield "torch", lambda: check_torch(probe)
    yield "gpu", lambda: check_gpu(probe, is_wanted=args.device == "cuda")
    for path in args.mixers:
        if probe.has_torch:
            yield f"mixer {path}", lambda path=path: check_mixers(path)
        else:
            yield f"mixer {path}", lambda path=path: unchecked(f"mixer {path}", "needs torch", "mend torch first")


def _given_checks(args: argparse.Namespace, targets: Sequence[str]) -> list[Check]:
    checks: list[Check] = [
        (f"shards {pattern}", lambda pattern=pattern: check_shards(pattern)) for pattern in args.data
    ]
    if targets:
        credentials = credentials_of(args)
        checks.append(("servers", lambda: check_servers(targets, args.server_http_port, credentials=credentials)))
    return checks


def _summary(counts: Counter[str]) -> dict[str, int]:
    return {verdict: counts[verdict] for verdict in _VERDICTS}


def _targets(text: str) -> list[str]:
    targets = text.split(",") if text else []
    for target in targets:
        if not is_target(target):
            raise ConfigError(f"a server's address is host:port, dns:///name:port or unix:///path, got {target!r}")
    return targets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samix doctor", description=f"{__doc__} Ends with 1 if something will not work, 2 for wrong flags."
    )
    add = parser.add_argument
    add("--data", nargs="+", default=[], metavar="SHARDS", help="shards to look into: paths, globs, patterns, URLs")
    add("--mixers", nargs="+", default=[], type=Path, metavar="FILE", help="mixer files, or folders of them, to load")
    add("--connect", default="", metavar="ADDRESS", help="servers to visit: host:port or unix:///path, with commas")
    add("--server-http-port", default=8000, type=int, metavar="PORT", help="of their status pages (8000)")
    add("--device", choices=("auto", "cuda"), default="auto", help="cuda: a missing GPU is a failure")
    add("--host", default="127.0.0.1", help="address on which ports should be free (127.0.0.1)")
    add("--grpc-port", default=8001, type=int, metavar="PORT", help="of samix serve (8001)")
    add("--http-port", default=8000, type=int, metavar="PORT", help="of samix serve (8000)")
    add("--metrics-port", default=8002, type=int, metavar="PORT", help="of samix serve (8002)")
    add("--cache", default=Path("~/.cache/samix/shards"), type=Path, metavar="FOLDER", help="cache of remote shards")
    add("--cache-gb", default=200.0, type=float, metavar="GB", help="most that it may hold (200)")
    add_credential_flags(parser)
    add("--json", action="store_true", help="print one JSON object instead of lines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
