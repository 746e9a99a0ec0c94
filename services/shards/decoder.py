"""A process that decodes, as its owner sees it: asked for pictures, and replaced when it dies.

It is started by the fork server, so that nothing of this process, gRPC above all, is copied into it.
"""

import logging
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import send_handle

import numpy as np

from services.shards.decoding import Answer, DecodeRequest, Described, NewMemory, serve_decoding
from services.shards.index import ShardSet
from services.shards.processes import worker_context

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""Processes that may die of one request before it is given up."""

_ANSWER_S = 120.0
"""Longest wait for an answer, seconds; a process that takes longer is replaced."""
_FETCH_S = 600.0
"""The same where a remote shard may have to be fetched."""
_EXIT_S = 5.0
_LEAST_BYTES = 1 << 20
_starting = threading.Lock()  # multiprocessing keeps a list of all children that no two threads may change


class DecoderDied(Exception):
    """Several processes in a row ended in the middle of the same request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """The answer to a request. B is the number of its samples, S the side of its images."""

    images: np.ndarray
    """uint8 [B, 3, S, S]; changes with the next request. Rows of what could not be read hold anything."""
    samples: Described
    """[B]."""


class Decoder:
    """One process at a time, for one thread. `close` it."""

    def __init__(self, shards: ShardSet, on_restart: Callable[[], None] = lambda: None) -> None:
        self._shards = shards
        self._answer_s = _FETCH_S if shards.has_remote else _ANSWER_S
        self._on_restart = on_restart
        self._process: ForkServerProcess | None = None
        self._connection: Connection | None = None
        self._memory: mmap.mmap | None = None
        self._is_interrupted = False

    @property
    def process_id(self) -> int | None:
        """Of the process that runs; None before the first one."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, which is ready later; `decode` would do it as well.

        Raises:
            OSError: if the system has no room for it.
        """
        context = worker_context()
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_decoding, args=(theirs, self._shards), name="decode", daemon=True)
        with theirs, _starting:
            process.start()
        self._process, self._connection, self._memory = process, ours, None

    def decode(self, request: DecodeRequest) -> Decoded:
        """Read, decode and transform samples.

        Raises:
            ConfigError: if a cache of remote shards cannot be written.
            OSError: if the machine lacks files or memory.
            DecoderDied: if processes keep dying of it, or after `interrupt`.
        """
        for _ in range(MAX_ATTEMPTS):
            if self._is_interrupted:
                raise DecoderDied("it was interrupted")
            if self._process is None:
                self.start()
            answer = self._ask(request)
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                size = request.transform.size
                images = np.frombuffer(self._memory or b"", np.uint8, request.num_bytes)
                return Decoded(images=images.reshape(-1, 3, size, size), samples=answer)
            self._bury()
        raise DecoderDied(
            f"{MAX_ATTEMPTS} processes died decoding samples {list(request.positions)[:4]} and following, or took "
            f"longer than {self._answer_s:g} s"
        )

    def interrupt(self) -> None:
        """Let a `decode` under way on another thread fail, and all later ones."""
        self._is_interrupted = True
        if (process := self._process) is not None:
            with suppress(ValueError):  # it is closed just now
                process.kill()

    def close(self) -> None:
        """End the process."""
        process, connection = self._process, self._connection
        self._process = self._connection = self._memory = None
        if process is None or connection is None:
            return
        connection.close()
        process.join(_EXIT_S)
        if process.is_alive():  # it waits for a silent server, perhaps
            process.kill()
            process.join(_EXIT_S)
        with suppress(ValueError):  # not even that ends it as long as its disk hangs
            process.close()

    def _ask(self, request: DecodeRequest) -> Answer | None:
        """Send the request and wait for its answer; None if the process died, or had to be given up."""
        assert self._process is not None
        assert self._connection is not None
        try:
            self._provide(request.num_bytes, self._connection)
            self._connection.send(request)
            if self._connection in wait([self._connection, self._process.sentinel], self._answer_s):
                return self._connection.recv()
        except (EOFError, ConnectionError):
            pass
        return None

    def _provide(self, num_bytes: int, connection: Connection) -> None:
        if self._memory is not None and len(self._memory) >= num_bytes:
            return
        num_bytes = max(num_bytes, _LEAST_BYTES)
        handle = os.memfd_create("samix-decoded", os.MFD_CLOEXEC)
        try:
            os.ftruncate(handle, num_bytes)
            connection.send(NewMemory(num_bytes))
            send_handle(connection, handle, self.process_id)
            self._memory = mmap.mmap(handle, num_bytes)
        finally:
            os.close(handle)

    def _bury(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.join(_EXIT_S)
        if not self._is_interrupted:
            log.warning("decoder_died", extra={"pid": self._process.pid, "status": self._process.exitcode})
            self._on_restart()
        self.close()
