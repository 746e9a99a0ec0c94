"""Which samples of an epoch belong to which batch of which consumer: pure functions.

Full batches go to the consumers by turns, in rounds; what is left after the last full round is dealt evenly, as one
smaller batch for each. So all consumers have equally many batches, but for an end of fewer samples than consumers.

    order   | 0: first | 1: first | 2: first | 0: second | 1: second | 2: second | 0: | 1: | 2: |
             -------------- round ---------- ----------------------------------- ---- the rest --
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Deal:
    """The shape of an epoch."""

    num_samples: int
    """Samples of the epoch."""
    batch_size: int
    """Of a full batch."""
    num_consumers: int
    """Consumers that share the epoch."""
    drop_last: bool
    """Whether what is left after the last full round is left out."""

    @property
    def num_rounds(self) -> int:
        """Full batches of each consumer."""
        return self.num_samples // (self.batch_size * self.num_consumers)

    def num_batches(self, consumer: int) -> int:
        """Count the batches of a consumer."""
        rest = self._rest(consumer)
        return self.num_rounds + (rest.stop > rest.start)

    def rows(self, consumer: int, number: int) -> slice:
        """Find the place of a consumer's batch in the order of the epoch; batches count from 0."""
        if number >= self.num_rounds:
            return self._rest(consumer)
        start = self.global_number(consumer, number) * self.batch_size
        return slice(start, start + self.batch_size)

    def global_number(self, consumer: int, number: int) -> int:
        """Number a consumer's batch among those of all."""
        return number * self.num_consumers + consumer

    def _rest(self, consumer: int) -> slice:
        first = self.num_rounds * self.num_consumers * self.batch_size
        rest = 0 if self.drop_last else self.num_samples - first
        return slice(first + rest * consumer // self.num_consumers, first + rest * (consumer + 1) // self.num_consumers)
