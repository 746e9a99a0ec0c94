"""One sending of one request, whichever way it goes."""

from collections.abc import Callable
from typing import Any, Protocol

from samix.errors import MixerError
from samix.framing import Framed
from samix.pieces import Scattered

Answer = Framed[Any] | Scattered[Any]
Outcome = Answer | MixerError
"""An answer, or why there is none."""


class Attempt(Protocol):
    """A request that was sent. Its callbacks run once, on whatever thread ends it, or at once if it has ended."""

    def add_done_callback(self, callback: "Callable[[Attempt], object]") -> None:
        """Call back when there is an outcome."""
        ...

    def cancel(self) -> None:
        """Give up; the outcome is MixerCancelled unless the answer was faster."""
        ...

    @property
    def outcome(self) -> Outcome:
        """What became of it; only once it is done."""
        ...
