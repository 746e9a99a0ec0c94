"""One of several processes that serve one port, started by `samix serve --workers` alone."""

import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mixer_server.cli import build_server
from mixer_server.config import ServerConfig
from mixer_server.engine.cores import threads_per_worker
from mixer_server.scheduling.memory import planned_mib
from mixer_server.workers.worker_link import ParentLink, Report
from samix.errors import InputError
from services.cli import program
from services.config import parse_config
from services.cpu_policy import run_uninterrupted
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.signals import StopRequest, stop_on_signals

_EXIT_MARGIN_S = 5.0  # for what remains to be closed when all is answered


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM, or until the parent is gone.

    Args:
        argv: number of the worker, port, flags of `samix serve`, descriptor of the `ParentLink`.

    Returns:
        As `samix serve`.
    """
    index, grpc_port, *flags, descriptor = sys.argv[1:] if argv is None else argv
    config = parse_config(ServerConfig, "serve", flags)
    tune_malloc()
    run_uninterrupted()
    setup_logging(config.log_format)
    _label_logs(int(index))
    # The parent alone insists. What it sends may come twice: also from whoever stops all processes of a container.
    with stop_on_signals(repeats_s=config.exit_timeout_s) as stop:
        link = ParentLink(int(descriptor), stop)
        link.watch(config.exit_timeout_s + _EXIT_MARGIN_S)
        try:
            return _serve(share_of(config, int(index), int(grpc_port)), stop, link)
        except InputError as error:
            link.send(Report(addresses={}, mixers=[], refusal=str(error)))  # who prints it, once for all workers
            return 2


def share_of(config: ServerConfig, index: int, grpc_port: int) -> ServerConfig:
    """Make the config of one worker: what a machine has is shared evenly.

    Args:
        config: of all workers together.
        index: number of this one, from 0.
        grpc_port: the port that they share.
    """
    num = config.workers
    return dataclasses.replace(
        config,
        workers=1,
        grpc_port=grpc_port,
        http_port=0,
        metrics_port=0,
        unix_socket=worker_socket(config.unix_socket, index) if config.unix_socket else None,
        memory_mib=planned_mib(config.memory_mib) // num,
        shared_memory_mib=config.shared_memory_mib // num,
        # Fewer where torch was told so, by OMP_NUM_THREADS for instance.
        num_threads=config.num_threads
        or max(1, min(torch.get_num_threads(), threads_per_worker(num)) // max(1, config.lanes)),
    )


def worker_socket(path: Path, index: int) -> Path:
    """Name the unix socket of one worker: unlike a port, none can be shared."""
    return path.with_name(f"{path.name}.{index}")


def _serve(config: ServerConfig, stop: StopRequest, link: ParentLink) -> int:
    server = build_server(config, stop, is_worker=True)
    server.start()
    mixers = [f"{mixer.name}@{mixer.version}" for mixer in server.registry.mixers]
    link.send(Report(addresses=server.addresses, mixers=mixers))
    stop.wait()
    return 0 if server.stop() else 1


def _label_logs(index: int) -> None:
    def label(record: logging.LogRecord) -> bool:
        record.worker = index
        return True

    for handler in logging.getLogger().handlers:
        handler.addFilter(label)


if __name__ == "__main__":
    sys.exit(main())
