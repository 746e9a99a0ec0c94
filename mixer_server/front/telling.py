"""Tells those who watch health of changes, so that one who does not read them holds up nobody else.

gRPC has no queue for what it sends: it keeps the thread until the peer has room, and the health service would send
under the lock that every check needs.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc

from mixer_server.front.patience import Patience

_NUM_THREADS = 8
_MAX_SEND_S = 5.0
"""Longest a watcher may take for a message of ten bytes, before it is cut off."""


class Teller:
    """Sends to all watchers. `close` it once their calls have ended."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._executor = ThreadPoolExecutor(_NUM_THREADS, "health")

    def defer(self, send: Callable[[Any], None], context: grpc.ServicerContext) -> Callable[[Any], None]:
        """Make what sends to a watcher later, in place of gRPC's `send`; None, which ends its call, goes at once."""
        outbox = _Outbox(partial(self._hurry, send, context), self._executor)
        return lambda response: send(None) if response is None else outbox.put(response)

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()

    def _hurry(self, send: Callable[[Any], None], context: grpc.ServicerContext, response: Any) -> None:
        key = (context, "watch")
        self._patience.expect(key, _MAX_SEND_S, context.cancel)
        try:
            send(response)
        finally:
            self._patience.met(key)


class _Outbox:
    """What one watcher is to be told: the newest alone, since what was true before is of no use to it."""

    def __init__(self, send: Callable[[Any], None], executor: ThreadPoolExecutor) -> None:
        self._send = send
        self._executor = executor
        self._lock = threading.Lock()
        self._newest: Any = None
        self._is_sending = False

    def put(self, response: Any) -> None:
        """Send it as soon as what is being sent has gone."""
        with self._lock:
            self._newest = response
            if self._is_sending:
                return
            self._is_sending = True
        self._executor.submit(self._send_all)

    def _send_all(self) -> None:
        while (response := self._take()) is not None:
            self._send(response)

    def _take(self) -> Any:
        with self._lock:
            response, self._newest = self._newest, None
            self._is_sending = response is not None
            return response
