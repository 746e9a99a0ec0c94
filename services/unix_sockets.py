"""Paths that a unix socket is to be bound to: what an earlier server left behind is removed, and nothing else."""

import socket
import stat
from enum import Enum
from pathlib import Path


class Occupant(Enum):
    """What keeps a path from being bound."""

    FILE = "a file of that name is there"
    SERVER = "another server listens there"


def clear_path(path: Path, kind: socket.SocketKind) -> Occupant | None:
    """Remove a socket that nobody listens on any more.

    Args:
        path: where a socket is to be bound; gRPC for one would unlink whatever is there.
        kind: of the socket, as whoever listens there would have it.

    Returns:
        What is there and was left alone; None if the path is free now.

    Raises:
        OSError: if there is a socket of another kind, or of another user.
    """
    if not path.exists():
        return None
    if not stat.S_ISSOCK(path.stat().st_mode):
        return Occupant.FILE
    with socket.socket(socket.AF_UNIX, kind) as caller:
        caller.setblocking(False)  # a living server with a full queue must not hold us up
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return None
        except BlockingIOError:
            pass
    return Occupant.SERVER
