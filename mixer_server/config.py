"""Everything that can be said to `samix serve`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from mixer_server.datasets.config import DatasetsConfig, parse_datasets
from mixer_server.front.leases import LeaseConfig
from mixer_server.front.request_config import RequestConfig
from mixer_server.limits import check_seconds
from mixer_server.online.config import OnlineServiceConfig
from mixer_server.scheduling.batcher import BatchingConfig
from samix.errors import ConfigError
from services.logs import LogFormat
from services.security.config import SecurityConfig
from services.tracing import TracingConfig

ModelControl = Literal["none", "explicit", "poll"]

MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Serve mixers over gRPC, with health checks, a status page and metrics."""

    mixers: tuple[Path, ...] = ()
    """Mixer files (.safetensors), or folders of them; may be missing where there is a --dataset."""
    dataset: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A dataset that is read here and streamed to clients, NAME=SHARDS; may be given several times. SHARDS is a path,
    a glob, a pattern like train-{000000..000003}.tar, an address, or pipe:COMMAND (quote it)."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 serves other machines too."""
    grpc_port: int = 8001
    """Port of gRPC; 0 takes a free one and prints it."""
    http_port: int = 8000
    """Port of the status page, /livez, /readyz and /metrics; 0 takes a free one and prints it."""
    gallery: bool = False
    """Show the latest mixed pictures on the status page: clients' data, to whoever can open it."""
    metrics_port: int = 8002
    """Port of /metrics alone; 0, and also a port that is taken, become a free one that is printed."""
    workers: int = 1
    """Processes that share the gRPC port, for more pixels than one can move (about 2 GB/s); with GPUs worker i has the
    i-th. Connections are spread over them. Memory and cores are shared evenly, as are leases of shared memory; worker i
    has a unix socket of its own, PATH.i."""
    unix_socket: Path | None = None
    """Unix socket to listen on as well, for trainers on this machine; only this user may open it."""
    memory_mib: int = 0
    """Resident memory planned for this process, or all workers, in MiB: half of what mixers leave of it is for
    requests, and those beyond are refused with a hint when to come again. 0 takes four fifths of the machine's or
    container's."""
    shared_memory_mib: int = 0
    """Memory to lease to trainers on this machine for their pixels, in MiB, all leases together; 0 leases none. Needs
    --unix-socket, beside which a second socket (PATH.memory) leases it to this user only."""
    model_control: ModelControl = "none"
    """When mixers are loaded: none at the start only; explicit when an operator says so (samix mixers); poll whenever a
    file appears, changes or goes."""
    repository_poll_s: float = 10.0
    """Time between two looks at the folders of --mixers, in seconds; for --model-control poll."""
    keep_versions: int = 2
    """Most versions of one mixer in memory, for requests that name theirs; one more unloads the oldest."""
    admin_socket: Path | None = None
    """Unix socket for operators (samix mixers), which only this user may open; --model-control explicit needs it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where mixers run; auto takes the first GPU if there is one."""
    lanes: int = 0
    """Passes computed at once on the CPU. Two of one thread each mix up to twice as many images a second as one that
    two threads share, who wait for one another; a request that comes alone takes up to twice as long. 0 takes one, and
    with --dataset, whose batches are made ahead, one for each core, at most four."""
    num_threads: int = 0
    """Threads of a pass on the CPU, and that decode pictures; 0 takes one for each physical core that the process, or
    its container, may use, shared among workers and lanes."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoders. bf16 takes half the time where the processor has instructions for it, and makes masks
    that differ a little: serve one or the other to a training run."""
    compile: bool = False
    """Compile the encoders for images of --warm-up-sides: half a minute a side and more at the start, passes a tenth
    faster on a CPU. Needs a C++ compiler."""
    cuda_graphs: tuple[int, ...] = (16, 64)
    """Numbers of images for which passes are recorded on a GPU, to be launched at once; smaller ones are padded up to
    the next. Each takes memory for its features."""
    gpu_jpeg: bool = True
    """Decode JPEGs on the GPU, where there is one; its pixels are a few grey levels from those of a CPU."""
    warm_up_sides: tuple[int, ...] = ()
    """Sides, in pixels, of the square images each mixer is warmed up with; without any the one it was trained for."""
    exit_timeout_s: float = 30.0
    """Longest the server takes to answer what it has accepted, in seconds, after SIGTERM or Ctrl-C."""
    log_format: LogFormat = "text"
    """Log lines for people (text) or machines (json)."""
    tracing: TracingConfig = field(default_factory=TracingConfig)
    """Spans for OpenTelemetry."""
    batching: BatchingConfig = field(default_factory=BatchingConfig)
    """How requests are grouped."""
    requests: RequestConfig = field(default_factory=RequestConfig)
    """What a single request may ask for."""
    leases: LeaseConfig = field(default_factory=LeaseConfig)
    """How shared memory is handed out."""
    datasets: DatasetsConfig = field(default_factory=DatasetsConfig)
    """How datasets are read, decoded and streamed."""
    online: OnlineServiceConfig = field(default_factory=OnlineServiceConfig)
    """Whether and how mixers are trained here."""
    security: SecurityConfig = field(default_factory=SecurityConfig)
    """Who may connect, and how much they may hold."""

    def __post_init__(self) -> None:
        for name in ("grpc_port", "http_port", "metrics_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ConfigError(f"{name.replace('_', '-')} must lie in 0..65535, got {getattr(self, name)}")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ConfigError(f"workers must lie in 1..{MAX_WORKERS}, got {self.workers}")
        if self.memory_mib < 0:
            raise ConfigError(f"memory-mib must be >= 0, got {self.memory_mib}; 0 takes most of what there is")
        if self.lanes < 0:
            raise ConfigError(f"lanes must be >= 0, got {self.lanes}; 0 chooses")
        if self.num_threads < 0:
            raise ConfigError(f"num-threads must be >= 0, got {self.num_threads}; 0 takes one for each core")
        check_seconds("exit-timeout-s", self.exit_timeout_s)
        for size in self.cuda_graphs:
            if size < 1:
                raise ConfigError(f"cuda-graphs must be numbers of images, at least 1, got {size}")
        check_seconds("repository-poll-s", self.repository_poll_s)
        if self.keep_versions < 1:
            raise ConfigError(f"keep-versions must be at least 1, got {self.keep_versions}; 1 keeps the newest only")
        if self.model_control == "explicit" and not self.admin_socket:
            raise ConfigError("model-control explicit needs somebody to say what to load: give --admin-socket PATH")
        if self.admin_socket and self.admin_socket == self.unix_socket:
            raise ConfigError(f"admin-socket and unix-socket are both {self.admin_socket}; clients need another one")
        if self.admin_socket and self.workers > 1:
            raise ConfigError(
                f"admin-socket {self.admin_socket} speaks to one process, workers is {self.workers}, and one that is "
                "started again would not know what it was told; use --model-control poll instead, or --workers 1"
            )
        if 0 < self.shared_memory_mib < self.workers:
            raise ConfigError(
                f"shared-memory-mib is {self.shared_memory_mib}, of which {self.workers} workers cannot have 1 each"
            )
        if self.shared_memory_mib < 0:
            raise ConfigError(f"shared-memory-mib must be >= 0, got {self.shared_memory_mib}; 0 leases none")
        if self.shared_memory_mib and not self.unix_socket:
            raise ConfigError(
                f"shared-memory-mib is {self.shared_memory_mib}, but only callers on a unix socket may use it; "
                "give --unix-socket PATH as well, or omit --shared-memory-mib"
            )
        parse_datasets(self.dataset)
        if self.dataset and self.workers > 1:
            raise ConfigError(
                f"dataset {self.dataset[0]} is streamed by one process, which knows all of its consumers, workers is "
                f"{self.workers}; start a server of its own for datasets, with --workers 1"
            )
        if self.online.is_enabled and self.workers > 1:
            raise ConfigError(
                f"online.memory-mib is {self.online.memory_mib}, but one process must hold a session, and workers is "
                f"{self.workers}; start a server of its own for co-training, with --workers 1"
            )
        if self.requests.max_images > self.batching.max_queue_images:
            raise ConfigError(
                f"requests.max-images ({self.requests.max_images}) must not exceed batching.max-queue-images "
                f"({self.batching.max_queue_images}): such a request would be refused for ever"
            )
