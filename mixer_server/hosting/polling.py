"""A thread that does something again and again until it is closed."""

import logging
import threading
from collections.abc import Callable

from samix.errors import MixerError

log = logging.getLogger(__name__)


class Poller:
    """Scans a repository every few seconds. `start`, then `close` once."""

    def __init__(self, scan: Callable[[], None], interval_s: float) -> None:
        self._scan = scan
        self._interval_s = interval_s
        self._is_closed = threading.Event()
        # A daemon, so that a file that cannot be read to its end does not keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)

    def start(self) -> None:
        """Scan from now on, for the first time after one interval."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Scan no longer; a scan that has begun is waited for, but no longer than `timeout_s`."""
        self._is_closed.set()
        if self._thread.ident is not None:  # it was started
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._is_closed.wait(self._interval_s):
            try:
                self._scan()
            except MixerError as error:
                log.warning("scan_refused", extra={"reason": str(error)})
            except Exception:
                log.exception("scan_failed")  # and tried again: the folder of tomorrow is another one
