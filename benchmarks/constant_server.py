"""A mixer server whose engine costs nothing: what is left is transport, validation, batching and scheduling."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.constant import ConstantPasses
from benchmarks.machine import bind_child
from benchmarks.peer_servers.mix_batch import MODEL
from benchmarks.serving import Served
from mixer_server.app import MixerServer
from mixer_server.config import ServerConfig
from mixer_server.hosting.registry import Registry
from samix.mixing.frozen import random_mixer
from samix.mixing.presets import resnet18_spec
from services.cli import program
from services.config import parse_config
from services.cpu_policy import run_uninterrupted
from services.malloc import tune_malloc
from services.signals import stop_on_signals
from trainer.children import start_child

_MODULE = "benchmarks.constant_server"
_READY_S = 120.0


@dataclass(frozen=True, kw_only=True)
class ConstantServerConfig:
    """Serve one mixer, called `mixer`, that answers every batch alike."""

    grpc_port: int = 0
    """Port of gRPC; 0 takes a free one."""
    unix_socket: Path | None = None
    """Unix socket to listen on as well."""


@contextmanager
def constant_server(folder: Path, core: int | None, log: Path) -> Iterator[Served]:
    """Run it in a process of its own, on one core; it is gone after the block.

    Args:
        folder: for its unix socket.
        core: where it runs.
        log: what it prints.

    Raises:
        ChildFailed: if it does not get ready.
    """
    socket = folder / "mixer.sock"
    with start_child(_MODULE, ["--unix-socket", str(socket)], log) as server:
        bind_child(server.process_id, core)
        line = server.wait_for_line("ready ", _READY_S)
        addresses = dict(part.split("=", 1) for part in line.split()[1:])
        targets = {"tcp": addresses["grpc"], "unix": f"unix://{socket}"}
        yield Served(process_id=server.process_id, targets=targets, artefacts={})


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, after a line `ready grpc=HOST:PORT ...` on stdout.

    Returns:
        0 if everything accepted was answered, 1 if that took too long.
    """
    config = parse_config(ConstantServerConfig, "bench constant-server", argv)
    tune_malloc()
    run_uninterrupted()
    with stop_on_signals() as stop:
        server = _make_server(config)
        server.start()
        print(" ".join(["ready", *(f"{name}={address}" for name, address in server.addresses.items())]), flush=True)
        stop.wait()
        return 0 if server.stop() else 1


def _make_server(config: ConstantServerConfig) -> MixerServer:
    mixer = random_mixer(resnet18_spec(), seed=0, name=MODEL)
    server = ServerConfig(
        mixers=(), grpc_port=config.grpc_port, http_port=0, metrics_port=0, unix_socket=config.unix_socket
    )
    return MixerServer(server, Registry([mixer]), passes=ConstantPasses())


if __name__ == "__main__":
    sys.exit(main())
