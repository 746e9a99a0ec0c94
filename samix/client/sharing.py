"""Pixels of a connection over shared memory: leased at first use, and again after the server has been away."""

import logging
import threading
import time
from pathlib import Path

from samix.client.shared_memory import SharedMemoryLease, Slot
from samix.errors import MixerError
from samix.framing import Framed
from samix.mixer.v1 import mixer_pb2 as pb
from samix.shared_memory import memory_socket

log = logging.getLogger(__name__)

_LEASE_S = 1.0
"""Longest to wait for a lease, seconds."""
_PAUSE_S = 30.0
"""Before a server that leased nothing is asked again, seconds."""
_SLOT_S = 0.05
"""Longest to wait for room, seconds; batches that find none travel as bytes."""


class Sharing:
    """Puts pixels where the server on this machine reads them. Safe for threads; belongs to one process."""

    def __init__(self, unix_path: str, num_bytes: int) -> None:
        self._socket = memory_socket(Path(unix_path))
        self._num_bytes = num_bytes
        self._lock = threading.Lock()
        self._lease: SharedMemoryLease | None = None
        self._ask_again_s = 0.0
        self._is_closed = False

    def place(self, request: Framed[pb.MixRequest]) -> tuple[Framed[pb.MixRequest], Slot | None]:
        """Put the pixels of a request into shared memory.

        Returns:
            What is to be sent instead, and the slot to release once it is answered. Pixels that are no exact uint8, or
            for which there is no room, stay in the request, and there is no slot.
        """
        lease = self._open() if request.message.pixel_format == pb.PIXEL_FORMAT_UINT8 else None
        slot = lease.allocate(len(request.bulk), _SLOT_S) if lease else None
        if lease is None or slot is None:
            return request, None
        slot.array[:] = request.bulk
        message = pb.MixRequest()
        message.CopyFrom(request.message)
        message.shared.lease, message.shared.offset = lease.lease, slot.offset
        return Framed(message), slot

    def close(self) -> None:
        """End the lease."""
        with self._lock:
            self._is_closed = True
            if self._lease is not None:
                self._lease.close()

    def _open(self) -> SharedMemoryLease | None:
        with self._lock:
            if self._is_closed:
                return None
            if self._lease is not None and not self._lease.is_open:
                self._lease.close()
                self._lease = None
            if self._lease is None and time.monotonic() >= self._ask_again_s:
                try:
                    self._lease = SharedMemoryLease.open(self._socket, self._num_bytes, _LEASE_S)
                except MixerError as error:
                    log.warning("mixer_shares_no_memory socket=%s reason=%s", self._socket, error)
                    self._ask_again_s = time.monotonic() + _PAUSE_S
            return self._lease
