"""One accepted request on its way from the caller's thread to the engine and back."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

from samix.errors import MixerError
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.tracing import Span
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
    mixer: FrozenMixer
    """The version that answers it, also if it is unloaded meanwhile."""
    call: MixCall
    """The decoded request."""
    deadline_s: float
    """When its caller stops waiting, on the batcher's clock."""
    max_pass_images: int
    """Most images of its size that fit into the memory of a pass; at least its own."""
    client: str = ""
    """Whose it is; clients get equal shares."""
    priority: int = pb.PRIORITY_NORMAL
    """LOW, NORMAL or HIGH of `samix.mixer.v1.Priority`; a higher one goes first."""
    arrived_s: float = 0.0
    """When the batcher accepted it, on the batcher's clock."""
    started_s: float = 0.0
    """When its pass began, likewise; set by the engine."""
    ended_s: float = 0.0
    """When its pass ended, likewise."""
    request: str = ""
    """Its key, for logs."""
    span: Span | None = None
    """Where somebody traces it."""
    number: int = -1
    """Its place in the order of arrival, given by the batcher."""
    answer: Future[MixReply] = field(default_factory=Future)
    """Where the caller's thread waits."""
    num_images: int = field(init=False)
    """Number of images."""
    work: int = field(init=False)
    """How long it keeps the mixer busy, in pixels: what clients get equal shares of."""

    def __post_init__(self) -> None:
        self.num_images = len(self.call.pixels)
        self.work = self.num_images * self.key.height * self.key.width

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
