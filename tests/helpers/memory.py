"""A server's shared memory without the server around it, and ways to hear what becomes of its leases."""

import logging
import queue
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving import WAIT_S

from mixer_server.front.leases import LeaseConfig
from mixer_server.front.shared_memory import SharedMemory
from samix.client.shared_memory import SharedMemoryLease
from samix.shared_memory import MAX_RECORD_BYTES, Answer

LOGGER = "mixer_server.front.shared_memory"


@contextmanager
def leasing(folder: Path, *, total_mib: int = 4, **settings: Any) -> Iterator[SharedMemory]:
    """Lease memory in a folder; settings are those of LeaseConfig."""
    memory = SharedMemory(LeaseConfig(**settings), unix_socket=folder / "mixer.sock", max_mib=total_mib)
    memory.start()
    try:
        yield memory
    finally:
        memory.close()


def lease_from(memory: SharedMemory, num_bytes: int = 1 << 20) -> SharedMemoryLease:
    return SharedMemoryLease.open(memory.path, num_bytes, WAIT_S)


def make_caller() -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.settimeout(WAIT_S)
    return caller


def call(path: Path) -> socket.socket:
    """Connect as a client that does not know how to behave."""
    caller = make_caller()
    caller.connect(str(path))
    return caller


def answer_to(caller: socket.socket) -> Answer:
    """Read what the server says."""
    return Answer.decode(caller.recv(MAX_RECORD_BYTES))


def hung_up(caller: socket.socket) -> bool:
    """Wait for the other side to hang up; False if it speaks instead."""
    try:
        return caller.recv(MAX_RECORD_BYTES) == b""
    except ConnectionResetError:  # it had not read all we said
        return True


def num_descriptors() -> int:
    """Count the file descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Ear(logging.Handler):
    """Waits for what the server's memory logs."""

    def __init__(self) -> None:
        super().__init__()
        self._records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.put(record)

    def wait_for(self, event: str) -> logging.LogRecord:
        while (record := self._records.get(timeout=WAIT_S)).getMessage() != event:
            pass
        return record


@contextmanager
def listening() -> Iterator[Ear]:
    """Hear the log of the server's memory."""
    ear, logger = Ear(), logging.getLogger(LOGGER)
    level = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        yield ear
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)


@contextmanager
def python(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program that talks through its stdin and stdout; killed at the end if it is still there."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def line_of(process: subprocess.Popen[str]) -> str:
    """Read one line that a program prints."""
    assert process.stdout
    return process.stdout.readline().strip()
