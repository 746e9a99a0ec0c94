"""A client's place for pixels in memory that a mixer server on this machine has leased to it.

Only uint8 pixels go up this way; headers, logits and mixed images travel through gRPC. Linux only.
"""

import bisect
import mmap
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from samix.errors import InputError, MixerBroken, MixerTimeout, MixerUnavailable
from samix.shared_memory import MAX_RECORD_BYTES, Answer, Hello, is_supported, peer_of

_ALIGNMENT = 64  # bytes, a cache line: two slots never share one


class Slot:
    """Room for the pixels of one request; a context manager that releases it."""

    def __init__(self, offset: int, array: np.ndarray, release: Callable[["Slot"], None]) -> None:
        self.offset = offset
        """Where it begins, in bytes from the start of the lease (`SharedPixels.offset`)."""
        self.array = array
        """uint8 [num_bytes] to copy the pixels into. Once released, another request may have the same bytes."""
        self._release = release

    def __enter__(self) -> "Slot":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the room back, once; when the answer is there, or nobody waits for it any more.

        A server that still reads for a request which was given up then sees pixels of another one: nobody gets that
        answer.
        """
        self._release(self)


class SharedMemoryLease:
    """Memory of one server, for as long as the connection to it is open. Safe for threads; belongs to one process."""

    def __init__(self, path: Path, connection: socket.socket, answer: Answer, memory: mmap.mmap) -> None:
        self.lease = answer.lease
        """As requests name it (`SharedPixels.lease`)."""
        self.num_bytes = answer.num_bytes
        """All the room there is."""
        self._path = path
        self._connection = connection
        self._memory = memory
        self._process_id = os.getpid()
        self._changed = threading.Condition()
        self._slots: list[Slot] = []  # taken, by offset
        self._is_closed = False
        _leases.add(self)

    def __enter__(self) -> "SharedMemoryLease":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple:
        raise InputError(f"a lease of {self._path} belongs to the process that took it; take one in the worker")

    @classmethod
    def open(cls, socket_path: str | Path, num_bytes: int, timeout_s: float) -> "SharedMemoryLease":
        """Lease memory from the server that listens there.

        Args:
            socket_path: `memory_socket` of the server's unix socket.
            num_bytes: memory to ask for; the server may give less.
            timeout_s: longest to wait for the server, in seconds.

        Raises:
            InputError: if this machine cannot share memory, or `num_bytes` is not positive.
            MixerUnavailable: if no server of this user listens there, or it refuses; the message says why.
            MixerTimeout: if the server does not answer in time.
            MixerBroken: if what it answers is no lease.
        """
        path = Path(socket_path)
        if not is_supported():
            raise InputError("shared memory needs Linux and a Python with os.memfd_create; send the pixels instead")
        if not 0 < num_bytes < 2**63:
            raise InputError(f"num_bytes of shared memory must lie in 1..2^63 - 1, got {num_bytes}")
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            answer, memory = _ask(connection, path, num_bytes, timeout_s)
        except BaseException:
            connection.close()
            raise
        connection.setblocking(False)  # from now on it is only looked at
        return cls(path, connection, answer, memory)

    @property
    def is_open(self) -> bool:
        """Whether the server still holds the lease, as far as the kernel knows; False once it is gone."""
        if self._is_closed or self._was_forked():
            return False
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except BlockingIOError:  # nothing to read is how it should be: the server never speaks again
            return True
        except OSError:
            return False

    def allocate(self, num_bytes: int, timeout_s: float) -> Slot | None:
        """Find room for a request.

        Args:
            num_bytes: size of its pixels.
            timeout_s: longest to wait until others release theirs, in seconds.

        Returns:
            The room; None if there is none in time, if so much never fits, or if the lease has ended.

        Raises:
            InputError: if the lease was taken before this process was forked.
        """
        if self._was_forked():  # before the lock, which the parent may have held at the fork
            raise InputError(
                f"the shared memory of {self._path} was leased before this process was forked; lease in the worker"
            )
        if not 0 < num_bytes <= self.num_bytes or not self.is_open:
            return None
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self._find(num_bytes) is not None, timeout_s)
            offset = self._find(num_bytes)
            if self._is_closed or offset is None:
                return None
            slot = Slot(offset, np.frombuffer(self._memory, np.uint8, num_bytes, offset), self._release)
            bisect.insort(self._slots, slot, key=_offset)
            return slot

    def close(self) -> None:
        """End the lease. Arrays of slots may still be touched, but hold zeros once the server has noticed."""
        if self._was_forked():
            return  # it belongs to the parent
        with self._changed:
            self._is_closed = True
            self._slots.clear()
            self._changed.notify_all()
            self._connection.close()
            with suppress(BufferError):  # slots are in use: it goes when they and this object do
                self._memory.close()

    def forget(self) -> None:
        """Let go of the connection in a fork, or the lease would outlive the process that owns it."""
        self._connection.close()

    def _find(self, num_bytes: int) -> int | None:
        # First fit: the same few pages again and again, which are mapped already and warm in the cache.
        end = 0
        for slot in self._slots:
            if slot.offset - end >= num_bytes:
                return end
            end = -(-(slot.offset + slot.array.nbytes) // _ALIGNMENT) * _ALIGNMENT
        return end if self.num_bytes - end >= num_bytes else None

    def _release(self, slot: Slot) -> None:
        if self._was_forked():
            return
        with self._changed:
            if slot in self._slots:
                self._slots.remove(slot)
                self._changed.notify_all()

    def _was_forked(self) -> bool:
        return self._process_id != os.getpid()


_leases: weakref.WeakSet[SharedMemoryLease] = weakref.WeakSet()


def _forget_leases() -> None:
    for lease in list(_leases):
        lease.forget()


if hasattr(os, "register_at_fork"):  # where it is missing there are no forks
    os.register_at_fork(after_in_child=_forget_leases)


def _offset(slot: Slot) -> int:
    return slot.offset


def _ask(connection: socket.socket, path: Path, num_bytes: int, timeout_s: float) -> tuple[Answer, mmap.mmap]:
    deadline_s = time.monotonic() + timeout_s
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        if (user_id := peer_of(connection)[1]) != os.geteuid():
            raise MixerUnavailable(f"{path} belongs to user {user_id}; only a server of this user gets our pixels")
        connection.send(Hello(num_bytes).encode())
        connection.settimeout(max(deadline_s - time.monotonic(), 0.001))
        record, descriptors, _, _ = socket.recv_fds(connection, MAX_RECORD_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError as error:
        raise MixerTimeout(f"{path} did not lease shared memory within {timeout_s} s") from error
    except OSError as error:
        raise MixerUnavailable(f"cannot lease shared memory of {path}: {error}") from error
    try:
        return _read(path, record, descriptors)
    finally:
        for descriptor in descriptors:  # the mapping has a duplicate of its own
            os.close(descriptor)


def _read(path: Path, record: bytes, descriptors: list[int]) -> tuple[Answer, mmap.mmap]:
    if not record:
        raise MixerUnavailable(f"{path} hung up instead of leasing shared memory; its server's log says why")
    try:
        answer = Answer.decode(record)
    except ValueError as error:
        raise MixerBroken(f"{path}: {error}") from error
    if not answer.lease:
        raise MixerUnavailable(f"{path} leases no shared memory: {answer.refusal}")
    if not descriptors or not 0 < answer.num_bytes <= os.fstat(descriptors[0]).st_size:
        raise MixerBroken(f"{path} leased {answer.num_bytes} bytes of shared memory, but gave none or less")
    return answer, mmap.mmap(descriptors[0], answer.num_bytes)
