"""Names of requests, by which the log lines and spans of a client and of its servers are found together."""

import itertools
import os
import secrets

KEY_METADATA = "samix-request"
"""Metadata in which a call says the key of its request, so that it is known before its message is there."""
TRACE_METADATA = "traceparent"
"""Metadata in which a call says the span it belongs to, as in W3C Trace Context."""

_MAX_KEY = 64


class RequestKeys:
    """Makes keys such as `5f2c9a1e-42`, which no other maker makes, also not its own copy in a fork."""

    def __init__(self) -> None:
        self._process_id = 0
        self._prefix = ""
        self._numbers = itertools.count(1)

    def next(self) -> str:
        """Make a key. Any thread may."""
        if self._process_id != (process_id := os.getpid()):
            self._prefix, self._process_id = secrets.token_hex(4), process_id
        return f"{self._prefix}-{next(self._numbers)}"


def tidy_key(key: str) -> str:
    """Make what a peer calls its request fit for lines and spans: short, and printable."""
    key = key[:_MAX_KEY]
    # Else a peer could end a line with it and begin one of its own, or speak to the terminal of whoever reads it.
    return key if key.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in key)
