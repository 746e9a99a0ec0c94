"""The stream of one rank: batches go up ahead of the step, logits come down."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc
from google.protobuf.message import DecodeError
from torch import Tensor

from samix.client.online.observer import OnlineObserver
from samix.client.online.session import OnlineSession
from samix.cotraining.wire import CHUNK_BYTES, SERVICE, TrainCall, batch_message, read_logits
from samix.errors import MixerBroken, MixerCancelled, MixerError, MixerOverloaded, MixerTimeout
from samix.framing import as_bytes, chunks, join, split
from samix.mixer.v1 import online_pb2 as pb
from samix.pieces import Pieces
from samix.status import from_refusal, from_rpc_error

log = logging.getLogger(__name__)

_JOIN_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MixAnswer:
    """What the server made of a batch."""

    logits: Tensor
    """float32 [B, 1, h, w] of image i's share, for the students' plan."""
    info: pb.CoTrainAnswer
    """Where the mixer stood, and what its last step cost."""


class PendingLogits:
    """A batch under way."""

    def __init__(self, step: int, target: str) -> None:
        self.step = step
        """The trainers' step."""
        self.sent_s = time.monotonic()
        """When it was sent, by the monotonic clock."""
        self._target = target
        self._done = threading.Event()
        self._outcome: MixAnswer | MixerError | None = None

    def result(self, timeout_s: float) -> MixAnswer:
        """Wait for the answer.

        Raises:
            MixerError: why there is none.
        """
        if not self._done.wait(timeout_s):
            raise MixerTimeout(f"mixer at {self._target}: no answer to step {self.step} within {timeout_s:g} s")
        assert self._outcome is not None
        if isinstance(self._outcome, MixerError):
            raise self._outcome
        return self._outcome

    def settle(self, outcome: MixAnswer | MixerError) -> None:
        """Have an outcome; the first one counts."""
        if not self._done.is_set():
            self._outcome = outcome
            self._done.set()


class RankStream:
    """Sends the batches of one rank, over a stream that is opened anew when it was lost. `close` ends it."""

    def __init__(
        self,
        session: OnlineSession,
        rank: int,
        observer: OnlineObserver,
        on_join: Callable[[pb.SessionState], None] = lambda _state: None,
    ) -> None:
        """Make a stream; nothing is sent before the first batch.

        Args:
            session: which has been opened.
            rank: of this process.
            observer: told of bytes.
            on_join: told where the session stands each time the rank has joined, on another thread.
        """
        self._session = session
        self._rank = rank
        self._observer = observer
        self._on_join = on_join
        self._lock = threading.Lock()
        self._open: _OpenStream | None = None
        self._is_closed = False

    @property
    def credits(self) -> int:
        """Most batches that may be under way."""
        return self._session.settings.max_staleness + 2

    def submit(self, call: TrainCall, timeout_s: float) -> PendingLogits:
        """Send a batch.

        Args:
            call: the batch; its images, uint8 on the CPU, must not change until it is answered.
            timeout_s: how long the server may hold it.

        Raises:
            InputError: if the connection was opened before this process was forked.
        """
        pending = PendingLogits(call.step, self._session.connection.target)
        try:
            stream = self._stream()
            stream.send(call, pending, timeout_s)
        except MixerError as error:
            pending.settle(error)
        return pending

    def close(self) -> None:
        """Leave the session; what is under way ends as cancelled."""
        with self._lock:
            self._is_closed = True
            stream, self._open = self._open, None
        if stream is not None:
            stream.close()

    def _stream(self) -> "_OpenStream":
        with self._lock:
            if self._is_closed:
                raise MixerCancelled("the session was left")
            if self._open is None or self._open.is_over:
                self._open = _OpenStream(self._session, self._rank, self._observer, self.credits, self._on_join)
                self._open.start()
            return self._open


class _OpenStream:
    """One call of CoTrain."""

    def __init__(
        self,
        session: OnlineSession,
        rank: int,
        observer: OnlineObserver,
        num_credits: int,
        on_join: Callable[[pb.SessionState], None],
    ) -> None:
        self.is_over = False
        """Whether the call has ended."""
        self._line = session.connection.line()
        self._session = session
        self._observer = observer
        self._credits = num_credits
        self._on_join = on_join
        self._changed = threading.Condition()
        self._join = pb.RankJoin(key=session.key.message(), rank=rank)
        self._to_send: list[tuple[TrainCall, float]] = []  # no more than the credits
        self._pending: dict[int, PendingLogits] = {}
        self._answer: tuple[pb.CoTrainAnswer, Pieces] | None = None
        method = self._line.channel.stream_stream(f"/{SERVICE}/CoTrain")
        try:
            self._call = method(self._requests(), metadata=self._line.metadata)
        except ValueError as error:  # gRPC's answer when another thread closes the channel right now
            raise MixerCancelled("the connection was closed") from error
        self._thread = threading.Thread(target=self._receive, name=f"rank-{rank}-answers", daemon=True)

    def start(self) -> None:
        """Receive from now on."""
        self._thread.start()

    def send(self, call: TrainCall, pending: PendingLogits, timeout_s: float) -> None:
        """Send a batch.

        Raises:
            MixerOverloaded: if as many as may be are under way.
            MixerError: if the stream has ended.
        """
        with self._changed:
            if self.is_over:
                raise MixerCancelled(f"mixer at {self._line.target}: the stream has ended")
            if len(self._pending) >= self._credits:
                raise MixerOverloaded(
                    f"mixer at {self._line.target}: {self._credits} batches are sent and not answered", 1.0
                )
            self._pending[call.step] = pending
            self._to_send.append((call, timeout_s))
            self._changed.notify_all()

    def close(self) -> None:
        """End the call."""
        self._end(MixerCancelled("the session was left"))
        self._call.cancel()
        if self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _requests(self) -> Iterator[bytes]:
        """Yield what goes up, on a thread of gRPC's."""
        yield pb.CoTrainRequest(join=self._join).SerializeToString()
        while (item := self._next()) is not None:
            call, timeout_s = item
            pixels = as_bytes(call.images.contiguous().numpy())
            message = pb.CoTrainRequest(batch=batch_message(call, timeout_s), pixel_bytes=len(pixels))
            for chunk in chunks(pixels, CHUNK_BYTES):
                yield join(message, chunk)
                message = pb.CoTrainRequest()
            self._observer.sent(len(pixels))

    def _next(self) -> tuple[TrainCall, float] | None:
        with self._changed:
            self._changed.wait_for(lambda: self.is_over or self._to_send)
            return None if self.is_over else self._to_send.pop(0)

    def _receive(self) -> None:
        reason: MixerError = MixerCancelled(f"mixer at {self._line.target}: the stream has ended")
        try:
            for data in self._call:
                self._take(data)
        except grpc.RpcError as error:
            reason = from_rpc_error(error, self._line.target)
        except (DecodeError, ValueError) as error:
            reason = MixerBroken(f"mixer at {self._line.target}: its answer cannot be read ({error})")
            self._call.cancel()
        except Exception:  # the edge of this thread: whoever waits must hear of it
            log.exception("rank_stream_failed")
            reason = MixerBroken("the stream of this rank failed; the log has the reason")
            self._call.cancel()
        finally:
            self._end(reason)

    def _end(self, reason: MixerError) -> None:
        with self._changed:
            self.is_over = True
            waiting, self._pending = list(self._pending.values()), {}
            self._to_send.clear()
            self._changed.notify_all()
        for pending in waiting:
            pending.settle(reason)

    def _take(self, data: bytes) -> None:
        framed = split(pb.CoTrainResponse, data)
        message = framed.message
        if message.HasField("terms"):
            self._on_join(message.terms.state)
            return
        if message.HasField("refusal"):
            self._settle(message.step, from_refusal(message.refusal, self._line.target), 0)
            return
        if message.HasField("answer"):
            self._answer = message.answer, Pieces()
        if self._answer is None:
            raise ValueError("logits came before their answer")
        info, pieces = self._answer
        pieces.add(framed.bulk)
        if len(pieces) < info.logit_bytes:
            return
        self._answer = None
        logits = read_logits(pieces.join(), info.mask_shape, self._session.settings.logits)
        if logits.ndim != 4 or logits.shape[1] != 1:
            raise ValueError(f"logits must have shape [B, 1, rows, columns], got {list(logits.shape)}")
        self._settle(message.step, MixAnswer(logits=logits, info=info), len(pieces))

    def _settle(self, step: int, outcome: MixAnswer | MixerError, num_bytes: int) -> None:
        with self._changed:
            pending = self._pending.pop(step, None)
        if pending is None:
            return
        if num_bytes:
            self._observer.received(num_bytes, time.monotonic() - pending.sent_s)
        pending.settle(outcome)
