"""Which request the lines of a thread are about, so that whoever logs deep inside need not know.

    with about_request("5f2c9a1e-42"):
        log.warning("jpeg_refused")  # ... jpeg_refused request=5f2c9a1e-42

A thread that speaks for others says `extra={"request": key}` itself, which counts more.
"""

import logging
from contextvars import ContextVar, Token
from types import TracebackType

_request: ContextVar[str] = ContextVar("samix_request", default="")


class about_request:  # noqa: N801 - used like a function
    """Lines of the block are about the request of this key. A class, for half the price of a generator."""

    __slots__ = ("_key", "_token")

    def __init__(self, key: str) -> None:
        self._key = key

    def __enter__(self) -> None:
        self._token: Token[str] = _request.set(self._key)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _request.reset(self._token)


def current_request() -> str:
    """Return the key of the request that this thread is about; empty where it is about none."""
    return _request.get()


def label_request(record: logging.LogRecord) -> bool:
    """Give a record the key of the request that its thread is about; a filter of handlers, which lets all pass."""
    if key := _request.get():
        vars(record).setdefault("request", key)
    return True
