"""Who is told what a trainer's side of a session does."""

from typing import Protocol


class OnlineObserver(Protocol):
    """Told of bytes, weights and losses of work, from several threads; must be quick and must not raise."""

    def sent(self, num_bytes: int) -> None:
        """A batch of this size is sent."""

    def received(self, num_bytes: int, seconds: float) -> None:
        """An answer of this size came, so long after its batch was sent."""

    def weights_sent(self, num_bytes: int, seconds: float) -> None:
        """Weights of this size arrived, after so long."""

    def weights_failed(self) -> None:
        """Weights did not arrive; they, or newer ones, are sent again."""

    def reconnected(self, lost_steps: int) -> None:
        """A stream was opened again; so many steps of learning are gone with the server that held them."""


class SilentOnlineObserver(OnlineObserver):
    """Listens to nothing."""
