"""Several processes that serve one port, for one moves two gigabytes a second at most, however many threads it has.

The system spreads connections, not calls, over them (SO_REUSEPORT). Each has its own engine, queue and budget.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from mixer_server.config import ServerConfig
from mixer_server.workers.page_secret import make_secret, secret_headers, secret_variables
from mixer_server.workers.worker_link import Report
from mixer_server.workers.worker_pages import WorkerPages
from mixer_server.workers.worker_process import Worker, describe_status
from samix.errors import ConfigError
from services.addresses import format_address, reserve_port
from services.cli import ProgramFailed
from services.environment import Environment
from services.http import serve_pages
from services.metrics import serve_metrics
from services.security.security import open_security
from services.signals import StopRequest

_POLL_S = 0.1
_EXIT_MARGIN_S = 10.0  # after which a worker that should have ended by itself is killed
_FAILED_EXIT_S = 5.0


class Workers:
    """The parent of the workers. `start`, `tend`, `stop`; a failed `start` leaves nothing open."""

    _pages: WorkerPages

    def __init__(self, config: ServerConfig, args: Sequence[str]) -> None:
        """Serve with workers.

        Args:
            config: how.
            args: the flags it was read from, which the workers read again.
        """
        self.addresses: dict[str, str] = {}
        """Where the workers listen, and where the pages of all are; filled by `start`."""
        self.mixers: list[str] = []
        """What the first of them hosts, as NAME@VERSION; filled by `start`."""
        self._config = config
        self._args = args
        self._workers: list[Worker] = []
        self._secret = make_secret()
        self._opened = ExitStack()

    def start(self, stop: StopRequest) -> bool:
        """Start all workers and wait until they are ready; False if somebody asked to stop before.

        Raises:
            ConfigError: if an address cannot be listened on, or what a worker said that it refuses.
            ProgramFailed: if a worker ended for another reason.
            OSError: if the system has no room for the processes.
        """
        try:
            self._open()
            for worker in self._workers:
                worker.start()
            while not all(worker.report for worker in self._workers):
                if stop.wait(_POLL_S) is not None:
                    return False
                for worker in self._workers:
                    worker.look()
                    _check_started(worker)
        except BaseException:
            self._close(_FAILED_EXIT_S)
            raise
        self._note_addresses([worker.report for worker in self._workers if worker.report])
        return True

    def tend(self, stop: StopRequest) -> None:
        """Start workers again that end, until somebody asks to stop."""
        while stop.wait(_POLL_S) is None:
            for worker in self._workers:
                worker.look()
                worker.restart_when_due()

    def stop(self) -> bool:
        """Drain all workers; False unless each of them answered in time all that it had accepted."""
        self._pages.drain()
        return self._close(self._config.exit_timeout_s + _EXIT_MARGIN_S)

    def _open(self) -> None:
        config = self._config
        door = open_security(config.security).door()
        reserved = self._opened.enter_context(reserve_port(config.host, config.grpc_port))
        port = reserved.getsockname()[1]
        self._workers = [self._make_worker(index, port) for index in range(config.workers)]
        self._pages = WorkerPages(self._workers, secret_headers(self._secret))
        self._opened.callback(self._pages.close)
        http = serve_pages(self._pages.routes(), config.host, config.http_port, door=door)
        self._opened.callback(http.close)
        metrics = serve_metrics(self._pages.metrics.registry, config.host, config.metrics_port, door=door)
        self._opened.callback(metrics.close)
        ports = {"grpc": port, "http": http.port, "metrics": metrics.port}
        self.addresses = {name: format_address(config.host, port) for name, port in ports.items()}

    def _make_worker(self, index: int, port: int) -> Worker:
        return Worker(
            index,
            args=["-m", "mixer_server.workers.worker", str(index), str(port), *self._args],
            environment=gpu_variables(index, self._num_gpus(), os.environ) | self._secret_variables(),
            on_restart=lambda: self._pages.metrics.restarts.labels(index).inc(),
        )

    def _secret_variables(self) -> dict[str, str]:
        return {} if self._config.security.is_open else secret_variables(self._secret)

    def _num_gpus(self) -> int:
        return 0 if self._config.device == "cpu" else torch.cuda.device_count()

    def _note_addresses(self, reports: Sequence[Report]) -> None:
        if sockets := [report.addresses["unix"] for report in reports if "unix" in report.addresses]:
            self.addresses["unix"] = ",".join(sockets)
        self.mixers = reports[0].mixers

    def _close(self, timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.terminate()
        is_clean = [worker.join(max(0, deadline_s - time.monotonic())) for worker in self._workers]
        self._opened.close()
        return all(is_clean)


def gpu_variables(index: int, num_gpus: int, environ: Environment) -> dict[str, str]:
    """Choose the GPU of a worker: it sees no other, so that nothing of it can end up on another.

    Args:
        index: number of the worker; workers beyond the number of GPUs share them.
        num_gpus: that torch sees in this process.
        environ: of this process.

    Returns:
        Environment variables.
    """
    if not num_gpus:
        return {}
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
    return {"CUDA_VISIBLE_DEVICES": names[index % num_gpus].strip()}


def _check_started(worker: Worker) -> None:
    end = worker.end
    if end is None:
        return
    if end.refusal:
        raise ConfigError(end.refusal)
    reason = f"worker {worker.index} {describe_status(end.status)} before all were ready; the lines above say why"
    raise ConfigError(reason) if end.status == 2 else ProgramFailed(reason)
