"""The threads that make batches of one dataset, each with a process that decodes."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from services.shards.decoder import Decoder
from services.shards.index import ShardSet

log = logging.getLogger(__name__)

Work = Callable[[Decoder], None]
"""Has its own way to say what went wrong: nothing that it raises is caught."""

_CLOSE_S = 2.0


class DecodePool:
    """Does work in the order it comes; whoever adds it bounds how much. `start`, then `close`."""

    def __init__(self, name: str, shards: ShardSet, num_workers: int, on_restart: Callable[[], None]) -> None:
        self._decoders = [Decoder(shards, on_restart) for _ in range(num_workers)]
        self._changed = threading.Condition()
        self._works: deque[tuple[object, Work]] = deque()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._run, args=(decoder,), name=f"decode-{name}-{number}", daemon=True)
            for number, decoder in enumerate(self._decoders)
        ]

    @property
    def num_waiting(self) -> int:
        """Pieces of work that wait."""
        return len(self._works)

    @property
    def process_ids(self) -> Sequence[int]:
        """Of the processes that run."""
        return [pid for decoder in self._decoders if (pid := decoder.process_id) is not None]

    def start(self) -> None:
        """Start the processes; nobody waits for them."""
        for thread in self._threads:
            thread.start()

    def add(self, owner: object, works: Sequence[Work]) -> None:
        """Have each of these done by a thread that has a decoder; after `close` they never are."""
        with self._changed:
            self._works.extend((owner, work) for work in works)
            self._changed.notify(len(works))

    def drop(self, owner: object) -> None:
        """Leave undone what was added for this owner and has not begun."""
        with self._changed:
            self._works = deque(entry for entry in self._works if entry[0] is not owner)

    def close(self) -> None:
        """End the threads and processes; work that waits is dropped, and what is under way is cut short."""
        with self._changed:
            self._is_closed = True
            self._works.clear()
            self._changed.notify_all()
        self._join()
        for decoder in self._decoders:
            decoder.interrupt()
        self._join()

    def _join(self) -> None:
        deadline_s = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            if thread.ident is not None:  # it was started
                thread.join(max(0.0, deadline_s - time.monotonic()))

    def _run(self, decoder: Decoder) -> None:
        try:
            self._start(decoder)
            while (work := self._next()) is not None:
                work(decoder)
                del work  # it holds a batch
        finally:
            decoder.close()

    def _start(self, decoder: Decoder) -> None:
        try:
            decoder.start()
        except Exception:  # the edge of this thread, which tries again when there is work, and can say so then
            log.warning("decoder_not_started", exc_info=True)

    def _next(self) -> Work | None:
        with self._changed:
            self._changed.wait_for(lambda: self._works or self._is_closed)  # `close` ends it
            return None if self._is_closed else self._works.popleft()[1]
