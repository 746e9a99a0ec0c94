"""Host mixers for trainers over gRPC."""

import dataclasses
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from mixer_server.app import MixerServer
from mixer_server.config import ServerConfig
from mixer_server.engine.cores import choose_lanes, usable_cores
from mixer_server.engine.device import open_passes
from mixer_server.hosting.registry import Registry, open_registry
from mixer_server.workers.workers import Workers
from samix.errors import ConfigError
from samix.mixing.artefact import load_mixer
from services.cli import program
from services.config import parse_config
from services.cpu_policy import run_uninterrupted
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.signals import StopRequest, stop_on_signals


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted.

    Returns:
        0 if everything accepted was answered, 1 if that took longer than `exit_timeout_s`.
    """
    args = sys.argv[1:] if argv is None else argv
    config = parse_config(ServerConfig, "serve", args)
    setup_logging(config.log_format)
    with stop_on_signals() as stop:
        return _serve(config, stop) if config.workers == 1 else _serve_with_workers(config, args, stop)


def build_server(config: ServerConfig, stop: StopRequest, *, is_worker: bool = False) -> MixerServer:
    """Make a server of the mixers of a config, which an operator may stop.

    Raises:
        ConfigError: if there is no such device.
        ArtefactError: if a mixer cannot be read.
    """
    device = _choose_device(config)
    config = _share_cores(config, device)
    return MixerServer(
        config,
        _open_registry(config, device),
        open_passes(config, device),
        load=partial(load_mixer, device=device),
        on_drain=partial(_ask_to_stop, stop),
        is_worker=is_worker,
    )


def _serve(config: ServerConfig, stop: StopRequest) -> int:
    tune_malloc()
    run_uninterrupted()
    server = build_server(config, stop)
    server.start()
    mixers = [f"{mixer.name}@{mixer.version}" for mixer in server.registry.mixers]
    datasets = {"datasets": ",".join(server.datasets.names)} if config.dataset else {}
    print(_ready_line(server.addresses | datasets, mixers), flush=True)
    stop.wait()
    return 0 if server.stop() else 1


def _serve_with_workers(config: ServerConfig, args: Sequence[str], stop: StopRequest) -> int:
    workers = Workers(config, args)
    if workers.start(stop):
        print(_ready_line(workers.addresses | {"workers": str(config.workers)}, workers.mixers), flush=True)
        workers.tend(stop)
    return 0 if workers.stop() else 1


def _choose_device(config: ServerConfig) -> str:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU; use --device cpu, or install torch with CUDA")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _share_cores(config: ServerConfig, device: str) -> ServerConfig:
    """Settle how many passes are computed at once, and tell torch how many threads each has."""
    lanes = choose_lanes(config.lanes, device, makes_ahead=bool(config.dataset))
    # torch's own number is what OMP_NUM_THREADS says, or one for each processor, whatever a container may use.
    torch.set_num_threads(config.num_threads or max(1, min(torch.get_num_threads(), usable_cores()) // lanes))
    return dataclasses.replace(config, lanes=lanes)


def _open_registry(config: ServerConfig, device: str) -> Registry:
    if (config.dataset or config.online.is_enabled) and not config.mixers:
        return Registry()
    if config.model_control == "none":
        return open_registry(config.mixers, device)
    return Registry(is_filling=config.model_control == "poll")


def _ask_to_stop(stop: StopRequest) -> None:
    if stop.signal is None:  # a second request would end the process at once
        stop.receive(signal.SIGTERM)


def _ready_line(fields: Mapping[str, str], mixers: Sequence[str]) -> str:
    return " ".join(["ready", *(f"{name}={value}" for name, value in fields.items()), f"mixers={','.join(mixers)}"])
