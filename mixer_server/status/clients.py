"""Who has asked for mixes lately, and how much."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_MAX_CLIENTS = 64
_SMOOTHING_S = 10.0
"""Over which rates are averaged: what is older counts e times less."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """One client; what it is called is its own choice."""

    name: str
    """As it names itself, else its address."""
    images_per_s: float
    """Images answered each second, averaged over some ten seconds."""
    num_images: int
    """Images answered since it was last forgotten."""
    seen_s: float
    """Time since its last answer, in seconds."""


@dataclass(kw_only=True, slots=True)
class _Tally:
    images_per_s: float = 0.0
    num_images: int = 0
    last_s: float = 0.0


class Clients:
    """Keeps a bounded number of names; those unseen for longest are forgotten. Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tallies: OrderedDict[str, _Tally] = OrderedDict()

    def note(self, name: str, num_images: int) -> None:
        """Count an answer."""
        now_s = self._clock()
        with self._lock:
            tally = self._tallies.get(name)
            if tally is None:
                tally = self._tallies[name] = _Tally()
            self._tallies.move_to_end(name)
            tally.images_per_s = _faded(tally, now_s) + num_images / _SMOOTHING_S
            tally.num_images += num_images
            tally.last_s = now_s
            if len(self._tallies) > _MAX_CLIENTS:
                self._tallies.popitem(last=False)

    def list(self) -> list[Client]:
        """List them, busiest first."""
        now_s = self._clock()
        with self._lock:
            clients = [
                Client(
                    name=name,
                    images_per_s=_faded(tally, now_s),
                    num_images=tally.num_images,
                    seen_s=max(0.0, now_s - tally.last_s),
                )
                for name, tally in self._tallies.items()
            ]
        return sorted(clients, key=lambda client: -client.images_per_s)


def _faded(tally: _Tally, now_s: float) -> float:
    return tally.images_per_s * math.exp(-max(0.0, now_s - tally.last_s) / _SMOOTHING_S)
