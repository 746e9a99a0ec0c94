"""Host mixers for trainers over gRPC."""

from collections.abc import Sequence

import torch

from mixer_server.app import MixerServer
from mixer_server.config import ServerConfig
from mixer_server.registry import open_registry
from samix.errors import ConfigError
from services.cli import program
from services.config import parse_config
from services.logs import setup_logging
from services.malloc import tune_malloc
from services.signals import stop_on_signals


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted.

    Returns:
        0 if everything accepted was answered, 1 if that took longer than `exit_timeout_s`.
    """
    config = parse_config(ServerConfig, "serve", argv)
    tune_malloc()
    setup_logging(config.log_format)
    with stop_on_signals() as stop:
        server = MixerServer(config, open_registry(config.mixers, _choose_device(config)))
        server.start()
        print(_ready_line(server), flush=True)
        stop.wait()
        return 0 if server.stop() else 1


def _choose_device(config: ServerConfig) -> str:
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU; use --device cpu, or install torch with CUDA")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _ready_line(server: MixerServer) -> str:
    addresses = [f"{name}={address}" for name, address in server.addresses.items()]
    mixers = ",".join(f"{mixer.name}@{mixer.version}" for mixer in server.registry.mixers)
    return " ".join(["ready", *addresses, f"mixers={mixers}"])
