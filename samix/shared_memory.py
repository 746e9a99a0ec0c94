"""What a client and a mixer server on one machine say to each other when memory for pixels changes hands.

The client connects to a unix socket beside the one of gRPC and sends one `Hello`; the server sends one `Answer`, and
with it, unless it refuses, a file descriptor of the memory. From then on the open connection is the lease: no name of
the memory exists that could be guessed, left behind or opened by somebody else.

The socket is one of records (SOCK_SEQPACKET), which arrive whole or not at all. All of this needs Linux.
"""

import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

MAX_RECORD_BYTES = 1024
"""Longest record; what is longer is not from us."""

_SUFFIX = ".memory"
_MAGIC = b"SAMIXSM1"  # the last character is the version
_HELLO = struct.Struct("<8sQ")
_ANSWER = struct.Struct("<8sQQ")
_CREDENTIALS = struct.Struct("iII")  # of SO_PEERCRED: process, user, group


@dataclass(frozen=True, slots=True)
class Hello:
    """A client's first and only record."""

    num_bytes: int
    """Memory it would like to have; it may get less."""

    def encode(self) -> bytes:
        """Make the record."""
        return _HELLO.pack(_MAGIC, self.num_bytes)

    @classmethod
    def decode(cls, record: bytes) -> "Hello":
        """Read the record.

        Raises:
            ValueError: if it is none.
        """
        if len(record) != _HELLO.size or not record.startswith(_MAGIC):
            raise ValueError(f"this is no {_MAGIC.decode()} hello ({len(record)} bytes); upgrade the older side")
        return cls(_HELLO.unpack(record)[1])


@dataclass(frozen=True, slots=True)
class Answer:
    """A server's only record: a lease, or why there is none."""

    lease: int = 0
    """The lease as requests name it (`SharedPixels.lease`), below 2^63; 0 if refused."""
    num_bytes: int = 0
    """Size of the memory."""
    refusal: str = ""
    """Why there is no lease, in one sentence."""

    def encode(self) -> bytes:
        """Make the record."""
        reason = self.refusal.encode()[: MAX_RECORD_BYTES - _ANSWER.size].decode(errors="ignore")  # no half character
        return _ANSWER.pack(_MAGIC, self.lease, self.num_bytes) + reason.encode()

    @classmethod
    def decode(cls, record: bytes) -> "Answer":
        """Read the record.

        Raises:
            ValueError: if it is none.
        """
        if len(record) < _ANSWER.size or not record.startswith(_MAGIC):
            raise ValueError(f"this is no {_MAGIC.decode()} answer ({len(record)} bytes); upgrade the older side")
        _, lease, num_bytes = _ANSWER.unpack_from(record)
        return cls(lease, num_bytes, record[_ANSWER.size :].decode(errors="replace"))


def memory_socket(unix_socket: Path) -> Path:
    """Where memory is leased by a server whose gRPC listens on `unix_socket`."""
    return unix_socket.with_name(unix_socket.name + _SUFFIX)


def is_supported() -> bool:
    """Whether this machine can share memory: Linux, with a Python that knows memfd_create (not all builds do)."""
    return hasattr(os, "memfd_create") and hasattr(socket, "SO_PEERCRED")


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Tell process and user at the other end, as the kernel noted them when the connection was made."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    process_id, user_id, _ = _CREDENTIALS.unpack(credentials)
    return process_id, user_id
