"""Tells Prometheus where the pages of all ranks are, by a file of its `file_sd_configs`.

A job of many ranks gets other machines and ports each time; a Prometheus that watches the file follows.
"""

import ipaddress
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.addresses import format_address
from services.files import replace_text
from trainer.metrics import MetricsConfig
from trainer.world import World

FILE_NAME = "prometheus-targets.json"

_ANYWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses for documentation (RFC 5737, RFC 3849): beyond the default route, and nobody's."""


@contextmanager
def announce_pages(out: Path, run: str, config: MetricsConfig, port: int, world: World) -> Iterator[None]:
    """Have the main rank list the pages of all ranks in `out` until the block ends; every rank must call it.

    Args:
        out: folder of the run.
        run: the label `run` of all pages.
        config: where this rank serves its page.
        port: on which it really does.
        world: the ranks.

    Raises:
        OSError: if the file cannot be written.
    """
    targets = world.gather(format_address(_reachable_host(config), port))
    path = out / FILE_NAME
    if world.is_main:
        groups = [{"targets": targets, "labels": {"job": "samix-trainer", "run": run}}]
        replace_text(path, json.dumps(groups, indent=2) + "\n")
    try:
        yield
    finally:
        if world.is_main:
            path.unlink(missing_ok=True)


def _reachable_host(config: MetricsConfig) -> str:
    if config.advertise:
        return config.advertise
    return _own_address() if _is_unspecified(config.host) else config.host


def _is_unspecified(host: str) -> bool:
    try:
        return not host or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False  # a name


def _own_address() -> str:
    """Find this machine's address on the network of its default route; without one, its name."""
    for family, anywhere in _ANYWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((anywhere, 9))  # chooses a route, sends nothing
            return probe.getsockname()[0]
    return socket.gethostname()
