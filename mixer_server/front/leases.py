"""Memory that clients on this machine put pixels into: regions with an owner, a size nobody can change, and a budget.

Clients may write while a pass reads. That is harmless: every byte is a valid uint8 pixel, so the worst outcome is a
mask for a torn picture of the client's own. No other dtype may ever be read from here.
"""

import fcntl
import mmap
import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from mixer_server.limits import check_seconds
from samix.errors import BadBatch, ConfigError, MixerUnavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseConfig:
    """How shared memory is handed out."""

    max_mib: int = 256
    """Most memory of one client, in MiB; who asks for more gets so much. Four batches of 64 images of 224 px are 37."""
    max_leases: int = 64
    """Most clients that hold memory at once."""
    idle_s: float = 600.0
    """Memory that no request has used for so many seconds is taken back; the client leases anew."""
    handshake_s: float = 5.0
    """Longest a client may take to say what it wants, in seconds."""

    def __post_init__(self) -> None:
        for name in ("max_mib", "max_leases"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"leases.{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        check_seconds("leases.idle-s", self.idle_s)
        check_seconds("leases.handshake-s", self.handshake_s)


class Leases:
    """All regions of one server. Safe for threads."""

    def __init__(self, config: LeaseConfig, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._regions: dict[int, _Region] = {}
        self._ended: list[_Region] = []

    @property
    def num_leases(self) -> int:
        """Leases that clients hold."""
        return len(self._regions)

    @property
    def num_bytes(self) -> int:
        """Memory of all leases, those included that have ended and are still being read."""
        with self._lock:
            return self._count_bytes()

    @property
    def has_readers(self) -> bool:
        """Whether `free` has to be called again for the sake of leases that have ended."""
        return bool(self._ended)

    def grant(self, num_bytes: int) -> tuple[int, int, int]:
        """Make a region.

        Args:
            num_bytes: what the client asks for.

        Returns:
            The lease, the region's size in bytes, and its file descriptor, which stays the region's.

        Raises:
            MixerUnavailable: if the budget, the number of leases or the machine does not allow it.
        """
        if num_bytes < 1:
            raise MixerUnavailable(f"asked for {num_bytes} bytes of shared memory; ask for at least 1")
        size = min(-(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, self._config.max_mib << 20, self._max_bytes)
        with self._lock:
            self._check_room(size)
            try:
                region = _open_region(size, self._clock())
            except OSError as error:
                raise MixerUnavailable(f"the server cannot make {size} bytes of shared memory: {error}") from error
            lease = 1 + secrets.randbelow(2**63 - 1)
            self._regions[lease] = region
        return lease, size, region.descriptor

    def view(self, lease: int, offset: int, num_bytes: int) -> np.ndarray:
        """Look at pixels where the client has put them.

        The array itself keeps the memory mapped: it may be read for as long as it, or anything made of it without a
        copy, is referred to, also if the lease ends meanwhile.

        Args:
            lease: as the client was told.
            offset: where the pixels begin, in bytes.
            num_bytes: how many there are.

        Returns:
            uint8 [num_bytes], read-only, no copy.

        Raises:
            MixerUnavailable: if there is no such lease (any more).
            BadBatch: if the range leaves the region.
        """
        with self._lock:
            region = self._regions.get(lease)
            if region is None:
                raise MixerUnavailable("this server has no such lease of shared memory (any more); take a new one")
            if offset < 0 or num_bytes < 1 or offset + num_bytes > region.size:
                raise BadBatch(
                    f"{num_bytes} bytes at offset {offset} of shared memory leave the lease's {region.size} bytes; "
                    "put the pixels inside"
                )
            region.used_s = self._clock()
            # Inside the lock: outside, the region could be closed between the look-up and here.
            return np.frombuffer(region.memory, np.uint8, num_bytes, offset)

    def idle(self) -> tuple[list[int], float]:
        """Tell which leases have been idle for too long, and in how many seconds the next may be."""
        with self._lock:
            left_s = {
                lease: region.used_s + self._config.idle_s - self._clock() for lease, region in self._regions.items()
            }
        overdue = [lease for lease, seconds in left_s.items() if seconds <= 0]
        return overdue, min((seconds for seconds in left_s.values() if seconds > 0), default=self._config.idle_s)

    def end(self, lease: int) -> None:
        """Take a region back; `free` gives its memory back once nobody reads it."""
        with self._lock:
            self._ended.append(self._regions.pop(lease))
        self.free()

    def free(self) -> None:
        """Give back the memory of the leases that have ended, but for those that are being read."""
        with self._lock:
            self._ended = [region for region in self._ended if not region.close()]

    def close(self) -> None:
        """End all leases. What is still being read stays mapped until its last reader lets go of it."""
        with self._lock:
            for region in (*self._regions.values(), *self._ended):
                if not region.close():
                    os.close(region.descriptor)
            self._regions.clear()
            self._ended.clear()

    def _check_room(self, size: int) -> None:
        if len(self._regions) >= self._config.max_leases:
            raise MixerUnavailable(
                f"all {self._config.max_leases} leases of shared memory are taken; raise --leases.max-leases"
            )
        if (taken := self._count_bytes()) + size > self._max_bytes:
            raise MixerUnavailable(
                f"no room for {size} bytes of shared memory, {taken} of {self._max_bytes} are leased; "
                "raise --shared-memory-mib or lease less"
            )

    def _count_bytes(self) -> int:
        return sum(region.size for region in (*self._regions.values(), *self._ended))


@dataclass(kw_only=True, slots=True, eq=False)
class _Region:
    """Memory of one lease."""

    descriptor: int
    """Of the anonymous file behind it."""
    memory: mmap.mmap
    """Read-only."""
    size: int
    """In bytes; sealed."""
    used_s: float
    """When a request last used it, on the clock."""

    def close(self) -> bool:
        """Unmap and empty the memory; False, and nothing happens, while some array still looks at it."""
        try:
            self.memory.close()
        except BufferError:
            return False
        # A client that lives keeps its own mapping for a while, and with it the pages: take them from the file. Where
        # that fails, they go when the client does.
        with suppress(OSError), mmap.mmap(self.descriptor, self.size) as memory:
            memory.madvise(mmap.MADV_REMOVE)
        os.close(self.descriptor)
        return True


def _open_region(size: int, now_s: float) -> _Region:
    descriptor = os.memfd_create("samix", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size)
        # Whoever shortens a file makes readers of its memory die of SIGBUS; F_SEAL_SEAL keeps the others for ever.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        memory = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
    except BaseException:
        os.close(descriptor)
        raise
    return _Region(descriptor=descriptor, memory=memory, size=size, used_s=now_s)
