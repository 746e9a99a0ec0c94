"""Tells Prometheus where the pages of all ranks are, by a file of its `file_sd_configs`.

A job of many ranks gets other machines and ports each time; a Prometheus that watches the file follows. It cannot watch
a file in folders it does not know yet, hence the second list, in a folder that all runs share.
"""

import ipaddress
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from samix.errors import ConfigError
from services.addresses import format_address
from services.files import replace_text
from trainer.metrics import MetricsConfig
from trainer.world import World

FILE_NAME = "prometheus-targets.json"

_ANYWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""Addresses for documentation (RFC 5737, RFC 3849): beyond the default route, and nobody's."""


@contextmanager
def announce_pages(out: Path, run: str, config: MetricsConfig, port: int, world: World) -> Iterator[None]:
    """Have the main rank list the pages of all ranks until the block ends; every rank must call it.

    The list stands in `out`, and as RUN.json in the folder that runs share, if there is one. What a run of this name
    that was killed left there is replaced.

    Args:
        out: folder of the run.
        run: the label `run` of all pages.
        config: where this rank serves its page.
        port: on which it really does.
        world: the ranks.

    Raises:
        ConfigError: if the shared folder cannot be written to.
        OSError: if the file in `out` cannot be written.
    """
    targets = world.gather(format_address(_reachable_host(config), port))
    groups = [{"targets": targets, "labels": {"job": "samix-trainer", "run": run}}]
    with ExitStack() as lists:
        if world.is_main:
            text = json.dumps(groups, indent=2) + "\n"
            lists.enter_context(_listed(out / FILE_NAME, text))
            if config.targets_folder is not None:
                lists.enter_context(_listed(_shared_list(config.targets_folder, run), text))
        yield


@contextmanager
def _listed(path: Path, text: str) -> Iterator[None]:
    replace_text(path, text)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            if path.read_text() == text:  # another run of this name may have taken its place
                path.unlink()


def _shared_list(folder: Path, run: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to the folder {folder} ({error.strerror}); choose another --metrics.targets-folder"
        ) from error
    return folder / f"{run}.json"


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
