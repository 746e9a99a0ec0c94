"""Who is which consumer of an epoch: one call at a time, known by its token."""

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from samix.errors import ConsumerTaken, MixerError


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    token: str
    end: Callable[[MixerError], None]


class Claims:
    """The consumers that are being served. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Hashable, _Claim] = {}

    @contextmanager
    def hold(self, key: Hashable, consumer: int, token: str, end: Callable[[MixerError], None]) -> Iterator[None]:
        """Be this consumer during the block. A call that shows the same token takes over, and the older one is ended.

        Args:
            key: what is consumed, and by which consumer.
            consumer: its number, for messages.
            token: of the call; an empty one can neither take over nor be taken over from.
            end: ends this call, with the reason; must be quick.

        Raises:
            ConsumerTaken: if a call with another token is it.
        """
        claim = _Claim(token, end)
        with self._lock:
            older = self._held.get(key)
            if older is not None and not (token and token == older.token):
                raise ConsumerTaken(
                    f"consumer {consumer} of this epoch is being served to another client; take another number below "
                    "num_consumers, another seed, or come back with that client's token"
                )
            self._held[key] = claim
        if older is not None:
            older.end(ConsumerTaken(f"consumer {consumer} came back on another call, which goes on with it"))
        try:
            yield
        finally:
            with self._lock:
                if self._held.get(key) is claim:
                    del self._held[key]
