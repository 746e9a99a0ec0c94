"""One turn of one system: its server on one core, its client on the other, both gone afterwards."""

import json
import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import Cores, on_core
from benchmarks.peer_servers.marked_processes import MARK, find_marked, kill_marked
from benchmarks.peer_systems import PORTS, SCRIPTS, System, Variant
from trainer.children import Child, ChildFailed

_READY_S = 60.0
_STOP_S = 10.0
_CLIENT_SPARE_S = 30.0
_POLL_S = 0.05
_HOST = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What every system is asked for in a turn."""

    concurrency: Sequence[int]
    """Callers that ask at once, one measurement each."""
    seconds: float
    """Length of a measurement, in seconds."""
    cores: Cores
    """Where client and server run."""


def take_turn(
    system: System, variant: Variant, python: Path, load: Load, log: Path, ready_s: float = _READY_S
) -> list[dict[str, Any]]:
    """Start a system, ask it, end it.

    Args:
        system: which one.
        variant: how it is set up.
        python: its environment's.
        load: what it is asked for.
        log: of the server; the client's lies beside it.
        ready_s: longest wait for the port, and again for the first answer, in seconds.

    Returns:
        The figures of `closed_loop.measure`, one for each concurrency.

    Raises:
        ChildFailed: if server or client fails, or takes too long.
    """
    ports = _free_ports(len(PORTS))
    address = f"{_HOST}:{ports[0]}"
    client_log = log.with_name(f"{log.stem}-client.log")
    with (
        tempfile.TemporaryDirectory(prefix="samix-bench-", ignore_cleanup_errors=True) as folder,
        ExitStack() as running,
    ):
        variables = _fill({"TMPDIR": folder, **system.variables, **variant.variables}, ports)
        command = [str(python), *_fill(dict(enumerate(system.server)), ports).values()]
        with on_core(load.cores.server):  # a child stays on the core it was started on
            mark, server = running.enter_context(_started(command, variables, log))
        _wait_for_port(server, address, ready_s)
        figures = Path(folder) / "figures.json"
        command = [str(python), str(SCRIPTS / system.client), *_client_flags(load, address, mark, ready_s, figures)]
        with on_core(load.cores.client):
            _, client = running.enter_context(_started(command, variables, client_log))
        limit_s = ready_s + _CLIENT_SPARE_S + len(load.concurrency) * (load.seconds + _CLIENT_SPARE_S)
        try:
            client.wait(limit_s, lambda _: None)
        except ChildFailed:
            server.check_running()  # whose own words say more
            raise
        return json.loads(figures.read_text())


def _client_flags(load: Load, address: str, mark: str, ready_s: float, out: Path) -> list[str]:
    concurrency = ["--concurrency", *map(str, load.concurrency)]
    flags = {"address": address, "seconds": load.seconds, "mark": mark, "ready-timeout-s": ready_s, "out": out}
    return [*concurrency, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))]


@contextmanager
def _started(command: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[tuple[str, Child]]:
    """Run a command under a mark of its own; all it has led to is gone after the block."""
    mark = uuid.uuid4().hex
    environment = {**os.environ, **variables, MARK: mark, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # so that Ctrl-C on the terminal reaches only this process
        )
        try:
            yield mark, Child(process, log)
        finally:
            _end(process, mark)


def _end(process: subprocess.Popen[bytes], mark: str) -> None:
    """Ask the first process to end all of them, wait a while, then kill what is left."""
    try:
        process.terminate()
        end_s = time.monotonic() + _STOP_S
        while (process.poll() is None or find_marked(mark)) and time.monotonic() < end_s:
            time.sleep(_POLL_S)
    finally:
        kill_marked(mark)
        process.wait()


def _free_ports(count: int) -> list[int]:
    """Choose ports that nobody listens on; all are held until the last is found, so that they differ."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]


def _fill(texts: Mapping[Any, str], ports: Sequence[int]) -> dict[Any, str]:
    """Put the ports in where they are meant."""
    filled = dict(texts)
    for name, port in zip(PORTS, ports, strict=True):
        filled = {key: text.replace(name, str(port)) for key, text in filled.items()}
    return filled


def _wait_for_port(server: Child, address: str, timeout_s: float) -> None:
    host, _, port = address.rpartition(":")
    end_s = time.monotonic() + timeout_s
    while True:
        server.check_running()
        with suppress(ConnectionRefusedError), socket.create_connection((host, int(port)), timeout=1):
            return
        if time.monotonic() > end_s:
            raise ChildFailed(f"the server does not listen on {address} after {timeout_s:.0f} s")
        time.sleep(_POLL_S)
