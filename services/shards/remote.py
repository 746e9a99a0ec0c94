"""Fetches what an http(s) address or a `pipe:` command gives into an open file, with timeouts and another try.

Object stores are reached by their own tools, as WebDataset's users do: `pipe:aws s3 cp s3://bucket/a.tar -`.
"""

import logging
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse, InvalidURL
from io import FileIO
from tempfile import TemporaryFile, gettempdir
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from samix.errors import ConfigError, ShardError
from services.shards.shard import PIPE

log = logging.getLogger(__name__)

_CHUNK_BYTES = 1 << 20
_PASSING_STATUSES = (408, 425, 429)  # and all from 500


class FetchFailed(ShardError):
    """An address gave nothing, or not everything, or something else than its index says."""

    def __init__(self, message: str, *, may_pass: bool = True, status: int | None = None) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        """Whether another try can help."""
        self.status = status
        """Of the HTTP answer, if that was the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a fetch may take, and how often it is tried again."""

    silence_s: float = 60.0
    """Longest wait for a connection or for the next bytes, seconds."""
    attempt_s: float = 3600.0
    """Longest duration of one attempt, seconds: a server that trickles must not hold a run for ever."""
    pauses_s: tuple[float, ...] = (1.0, 3.0, 9.0)
    """Before each further attempt, seconds; there is one attempt more than there are pauses."""


def fetch(
    address: str,
    file: FileIO,
    *,
    patience: Patience,
    check: Callable[[FileIO], None] = lambda _file: None,
    stop: threading.Event | None = None,
) -> None:
    """Fill a file with what an address gives.

    Args:
        address: http(s) URL or `pipe:` command.
        file: open for reading and writing; emptied before each attempt.
        patience: limits.
        check: looks at the filled file; what it raises as FetchFailed counts as a failed attempt.
        stop: when set, the fetch is given up soon.

    Raises:
        FetchFailed: with the reason of the last attempt.
        ConfigError: if the file cannot be written.
    """
    stop = stop or threading.Event()
    for pause_s in (*patience.pauses_s, None):
        try:
            _copy(address, file, patience, stop)
            check(file)
            return
        except FetchFailed as err:
            if pause_s is None or not err.may_pass or stop.is_set():
                raise
            log.warning("fetch_retried", extra={"address": address, "reason": str(err), "pause_s": pause_s})
        stop.wait(pause_s)


def _copy(address: str, file: FileIO, patience: Patience, stop: threading.Event) -> None:
    _written(file, lambda: file.truncate(0))
    file.seek(0)
    deadline = time.monotonic() + patience.attempt_s
    source = _piped if address.startswith(PIPE) else _downloaded
    with closing(source(address, patience.silence_s)) as chunks:
        for chunk in chunks:
            if stop.is_set():
                raise FetchFailed(f"{address} was not fetched to its end: no longer wanted", may_pass=False)
            if time.monotonic() > deadline:
                raise FetchFailed(f"{address} took more than {patience.attempt_s:g} s; fetch from a faster place")
            _written(file, lambda chunk=chunk: _write_all(file, chunk))


def _write_all(file: FileIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]


def _written(file: FileIO, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as err:  # a full disk is no fault of the shard: another one would not fit either
        # A temporary file has a number for a name.
        place, cure = (gettempdir(), "TMPDIR") if isinstance(file.name, int) else (file.name, "cache")
        raise ConfigError(f"cannot write to {place} ({err.strerror}); make room, or choose another {cure}") from err


def _downloaded(address: str, silence_s: float) -> Generator[bytes, None, None]:
    try:
        request = Request(address, headers={"User-Agent": "samix"})
        with urlopen(request, timeout=silence_s) as response:
            yield from _body(address, response)
    except FetchFailed:  # which is a ValueError too
        raise
    except HTTPError as err:
        with err:
            may_pass = err.code in _PASSING_STATUSES or err.code >= 500
            raise FetchFailed(
                f"{address} answers {err.code} {err.reason}; check the address", may_pass=may_pass, status=err.code
            ) from err
    except (InvalidURL, ValueError) as err:  # spaces, or a port that is no number
        raise FetchFailed(f"{address!r} is no address ({err}); correct it", may_pass=False) from err
    except (OSError, HTTPException) as err:
        reason = err.reason if isinstance(err, URLError) else err
        raise FetchFailed(f"{address} cannot be fetched ({reason}); check address and network") from err


def _body(address: str, response: HTTPResponse) -> Iterator[bytes]:
    expected, received = response.headers.get("Content-Length"), 0
    while chunk := response.read1(_CHUNK_BYTES):  # returns what one receive gave, so that the deadline is looked at
        received += len(chunk)
        yield chunk
    if expected is not None and received != int(expected):
        raise FetchFailed(f"{address} ended after {received} of {expected} bytes; check the network")


def _piped(address: str, silence_s: float) -> Generator[bytes, None, None]:
    command = address.removeprefix(PIPE)
    with (
        TemporaryFile() as complaints,
        subprocess.Popen(
            command,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield from _output(address, process.stdout, silence_s)
            status = process.wait(silence_s)
        except subprocess.TimeoutExpired as err:
            raise FetchFailed(f"{address} closed its output but did not end in {silence_s:g} s") from err
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if status:
            raise FetchFailed(f"{address} ended with status {status} ({_last_line(complaints)}); try it in a shell")


def _output(address: str, stdout: IO[bytes], silence_s: float) -> Iterator[bytes]:
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(silence_s):
                raise FetchFailed(f"{address} gave no byte for {silence_s:g} s; try it in a shell")
            chunk = os.read(stdout.fileno(), _CHUNK_BYTES)
            if not chunk:
                return
            yield chunk


def _last_line(complaints: IO[bytes]) -> str:
    complaints.seek(max(0, complaints.seek(0, os.SEEK_END) - 1000))
    lines = complaints.read().decode(errors="backslashreplace").strip().splitlines()
    return lines[-1] if lines else "no message"
