"""The line between a worker and the process that started it: a report goes up, and its end says that one is gone."""

import contextlib
import json
import os
import signal
import socket
import threading
from dataclasses import asdict, dataclass

from services.signals import StopRequest

MAX_REPORT_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How the start of a worker went."""

    addresses: dict[str, str]
    """Where it listens, by grpc, http, metrics and unix; empty if it cannot start."""
    mixers: list[str]
    """What it hosts, as NAME@VERSION."""
    refusal: str = ""
    """Why it cannot start, in a sentence for a person."""

    def encode(self) -> bytes:
        """Write it as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"


def decode_report(line: bytes) -> Report:
    """Read what `Report.encode` wrote."""
    return Report(**json.loads(line))


class ParentLink:
    """A worker's end of the line. It stays open as long as the process lives, so that the parent sees it end."""

    def __init__(self, descriptor: int, stop: StopRequest) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._stop = stop

    def send(self, report: Report) -> None:
        """Tell the parent how the start went; one that is gone need not know."""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(report.encode())

    def watch(self, exit_timeout_s: float) -> None:
        """From now on stop when the parent is gone.

        Args:
            exit_timeout_s: longest that may take, in seconds, after which the process ends as it is.
        """
        self._socket.set_inheritable(False)
        threading.Thread(target=self._watch, args=(exit_timeout_s,), name="parent-link", daemon=True).start()

    def _watch(self, exit_timeout_s: float) -> None:
        with contextlib.suppress(ConnectionError):
            while self._socket.recv(1):
                pass
        if self._stop.signal is not None:  # it was told to stop, and the parent does not wait for that any longer
            os._exit(1)
        self._stop.receive(signal.SIGTERM)
        threading.Event().wait(exit_timeout_s)
        os._exit(1)
