"""One accepted request on its way from the caller's thread to the engine and back."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from samix.errors import MixerError
from samix.wire import MixCall, MixReply


class GroupKey(NamedTuple):
    """What requests must share to be computed in one pass."""

    mixer: str
    version: str
    height: int
    width: int
    dtype: str


@dataclass(kw_only=True, slots=True, eq=False)
class Job:
    """A request that waits to be answered. The caller's thread may cancel `answer` at any time."""

    key: GroupKey
    """What it can be grouped with."""
    call: MixCall
    """The decoded request."""
    deadline_s: float
    """When its caller stops waiting, on the batcher's clock."""
    max_pass_images: int
    """Most images of its size that fit into the memory of a pass; at least its own."""
    arrived_s: float = 0.0
    """When the batcher accepted it, on the batcher's clock."""
    answer: Future[MixReply] = field(default_factory=Future)
    """Where the caller's thread waits."""

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.call.pixels)

    def give_up(self) -> None:
        """Let go of the answer: work that has not begun is dropped."""
        self.answer.cancel()

    def settle(self, outcome: MixReply | MixerError) -> None:
        """Answer the caller, unless it has given up or has its answer."""
        # Only here does the future leave its pending state, so a caller may give up even in the middle of a pass.
        if self.answer.done() or not self.answer.set_running_or_notify_cancel():
            return
        if isinstance(outcome, MixerError):
            self.answer.set_exception(outcome)
        else:
            self.answer.set_result(outcome)
