"""Everything that can be said to `samix serve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mixer_server.batcher import BatchingConfig
from mixer_server.limits import check_seconds
from mixer_server.servicer import RequestConfig
from samix.errors import ConfigError
from services.logs import LogFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Serve mixers over gRPC, with health checks, a status page and metrics."""

    mixers: tuple[Path, ...]
    """Mixer files (.safetensors), or folders of them."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 serves other machines too."""
    grpc_port: int = 8001
    """Port of gRPC; 0 takes a free one and prints it."""
    http_port: int = 8000
    """Port of the status page, /livez, /readyz and /metrics; 0 takes a free one and prints it."""
    metrics_port: int = 8002
    """Port of /metrics alone; 0, and also a port that is taken, become a free one that is printed."""
    unix_socket: Path | None = None
    """Unix socket to listen on as well, for trainers on this machine; only this user may open it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where mixers run; auto takes the first GPU if there is one."""
    num_threads: int = 0
    """Threads of a pass on the CPU; 0 leaves the choice to torch."""
    warm_up_sides: tuple[int, ...] = ()
    """Sides, in pixels, of the square images each mixer is warmed up with; without any the one it was trained for."""
    exit_timeout_s: float = 30.0
    """Longest the server takes to answer what it has accepted, in seconds, after SIGTERM or Ctrl-C."""
    log_format: LogFormat = "text"
    """Log lines for people (text) or machines (json)."""
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    """How requests are grouped."""
    requests: RequestConfig = field(default_factory=RequestConfig)
    """What a single request may ask for."""

    def __post_init__(self) -> None:
        for name in ("grpc_port", "http_port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name.replace('_', '-')} must lie in 0..65535, got {getattr(self, name)}")
        if self.num_threads < 0:
            raise ConfigError(f"num-threads must be >= 0, got {self.num_threads}; 0 leaves the choice to torch")
        check_seconds("exit-timeout-s", self.exit_timeout_s)
        if self.requests.max_images > self.batching.max_queue_images:
            raise ConfigError(
                f"requests.max-images ({self.requests.max_images}) must not exceed batching.max-queue-images "
                f"({self.batching.max_queue_images}): such a request would be refused for ever"
            )
