"""One open CoTrain: reads the batches of a rank on one thread, writes the answers on another."""

import logging
import threading
from collections import deque
from collections.abc import Iterator

import grpc

from mixer_server.front.edge import parse
from mixer_server.front.patience import Patience
from mixer_server.front.request_config import RequestConfig
from mixer_server.online.agenda import Answered
from mixer_server.online.footprint import credits_of
from mixer_server.online.metrics import SessionMetrics
from mixer_server.online.session import Session
from samix.cotraining.wire import CHUNK_BYTES, MAX_HEAD_BYTES, logit_bytes, read_batch
from samix.errors import BadBatch, MixerBroken, MixerError
from samix.framing import chunks, join
from samix.mixer.v1 import online_pb2 as pb
from samix.pieces import Pieces
from samix.status import STATUS_OF, to_refusal

log = logging.getLogger(__name__)

_MOST_BYTES = CHUNK_BYTES + MAX_HEAD_BYTES
_HURRY_S = 2.0
"""What is left to a call that is to end, for the answer that is on its way."""
_LOOK_S = 5.0


class RankStream:
    """Reads on the thread that calls `read`, writes on the one that iterates over `write`."""

    def __init__(
        self,
        context: grpc.ServicerContext,
        session: Session,
        rank: int,
        *,
        requests: RequestConfig,
        patience: Patience,
        metrics: SessionMetrics,
    ) -> None:
        self._context = context
        self._session = session
        self._rank = rank
        self._requests = requests
        self._patience = patience
        self._metrics = metrics
        self._received = metrics.received_bytes.labels(session.name, "batch")
        self._sent = metrics.sent_bytes.labels(session.name)
        self._credits = credits_of(session.settings)
        self._news = threading.Condition()
        self._outbox: deque[tuple[int, Answered | MixerError]] = deque()  # no longer than the credits
        self._num_waiting = 0
        self._incoming: tuple[pb.TrainBatch, int, Pieces] | None = None
        self._is_half_closed = False
        self._failure: MixerError | None = None

    def hear(self) -> None:
        """Look at what changed; any thread may call it."""
        with self._news:
            self._news.notify_all()

    def end(self, reason: MixerError) -> None:
        """End the call soon; the first reason counts."""
        with self._news:
            self._failure = self._failure or reason
            self._news.notify_all()
        # It may be stuck in the middle of an answer; cutting off a call that has ended does nothing.
        self._patience.expect((self, "end"), _HURRY_S, self._context.cancel)

    def read(self, messages: Iterator[bytes]) -> None:
        """Read until the client half-closes, fails, or is gone."""
        try:
            for data in messages:
                self._received.inc(len(data))
                self._take(data)
            if self._incoming is not None and self._context.is_active():
                raise BadBatch(f"the stream ended in the middle of step {self._incoming[0].step}", field="chunk")
            with self._news:
                self._is_half_closed = True
                self._news.notify_all()
        except grpc.RpcError as error:  # how gRPC says that the call is over
            error.__traceback__ = None  # gRPC keeps the error, and with these frames it would keep the last chunk
            self.hear()
        except MixerError as error:
            self.end(error.with_traceback(None))
        except Exception:
            log.exception("rank_stream_failed", extra={"session": self._session.name, "rank": self._rank})
            self.end(MixerBroken("the server failed on this stream; its log has the reason"))
        finally:
            self._patience.met((self, "upload"))

    def write(self) -> Iterator[bytes]:
        """Yield the terms, then the answers; for gRPC, which sends them.

        Raises:
            MixerError: why the call ends.
        """
        terms = pb.CoTrainTerms(credits=self._credits, max_chunk_bytes=CHUNK_BYTES, state=self._session.state())
        yield from self._send(pb.CoTrainResponse(terms=terms).SerializeToString())
        while (item := self._next()) is not None:
            step, answer = item
            for data in self._messages(step, answer):
                yield from self._send(data)

    def close(self) -> None:
        """Let go of everything."""
        for kind in ("send", "end", "upload"):
            self._patience.met((self, kind))

    def _take(self, data: bytes) -> None:
        if len(data) > _MOST_BYTES:
            raise BadBatch(f"a message of a batch may have {_MOST_BYTES} bytes, got {len(data)}; send smaller chunks")
        framed = parse(pb.CoTrainRequest, data)
        message = framed.message
        if message.HasField("join"):
            raise BadBatch("a second join came on one call; a rank joins once", field="join")
        if message.HasField("batch"):
            self._begin(message)
        if self._incoming is None:
            raise BadBatch("a chunk came of no batch; begin one", field="chunk")
        batch, num_bytes, pieces = self._incoming
        if len(framed.bulk) > CHUNK_BYTES:
            raise BadBatch(f"a chunk may have {CHUNK_BYTES} bytes, got {len(framed.bulk)}", field="chunk")
        pieces.add(framed.bulk)
        if len(pieces) > num_bytes:
            raise BadBatch(f"the pixels of step {batch.step} have {num_bytes} bytes, more came", field="chunk")
        if len(pieces) == num_bytes:
            self._incoming = None
            self._patience.met((self, "upload"))
            self._submit(batch, pieces)

    def _begin(self, message: pb.CoTrainRequest) -> None:
        if self._incoming is not None:
            raise BadBatch(f"step {message.batch.step} begins before the batch before it is whole", field="batch")
        with self._news:
            if self._num_waiting >= self._credits:
                raise BadBatch(f"{self._credits} batches are sent and not answered; wait for an answer", field="batch")
            self._num_waiting += 1
        self._check_shape(message)
        self._incoming = message.batch, message.pixel_bytes, Pieces()
        self._patience.expect((self, "upload"), self._requests.max_upload_s, self._cut_off)

    def _check_shape(self, message: pb.CoTrainRequest) -> None:
        """Refuse what is too large before its pixels are kept."""
        settings, shape = self._session.settings, list(message.batch.shape)
        side = settings.mixer.image_size
        if len(shape) != 4 or shape[1:] != [3, side, side] or not 1 <= shape[0] <= settings.batch_size:
            raise BadBatch(
                f"shape must be [1..{settings.batch_size}, 3, {side}, {side}] in this session, got {shape[:8]}",
                field="shape",
            )
        num_bytes = shape[0] * 3 * side * side
        if message.pixel_bytes != num_bytes:
            raise BadBatch(f"pixel_bytes must be {num_bytes}, got {message.pixel_bytes}", field="pixel_bytes")

    def _submit(self, batch: pb.TrainBatch, pieces: Pieces) -> None:
        step = batch.step

        def settle(answer: Answered | MixerError) -> None:
            with self._news:
                self._outbox.append((step, answer))
                self._news.notify_all()

        try:
            call = read_batch(batch, pieces.join(), self._session.settings.num_classes)
            timeout_s = min(batch.timeout_ms / 1000 or self._requests.max_wait_s, self._requests.max_wait_s)
            self._session.submit(call, self._rank, timeout_s, settle, self.end)
        except BadBatch as error:
            settle(error)

    def _next(self) -> tuple[int, Answered | MixerError] | None:
        """Wait for an answer; None when the client has half-closed and has them all."""
        with self._news:
            while True:
                if self._outbox:
                    self._num_waiting -= 1
                    return self._outbox.popleft()
                if self._failure is not None:
                    raise self._failure
                if not self._context.is_active() or (self._is_half_closed and not self._num_waiting):
                    return None
                self._news.wait(_LOOK_S)

    def _messages(self, step: int, answer: Answered | MixerError) -> Iterator[bytes]:
        if isinstance(answer, MixerError):
            self._metrics.refused.labels(STATUS_OF[type(answer)].name).inc()
            yield pb.CoTrainResponse(step=step, refusal=to_refusal(answer)).SerializeToString()
            return
        data = logit_bytes(answer.logits, self._session.settings.logits)
        head = pb.CoTrainAnswer(
            mask_shape=answer.logits.shape,
            logit_bytes=len(data),
            learned_steps=answer.learned_steps,
            weights_step=answer.weights_step,
            losses=answer.losses,
        )
        message = pb.CoTrainResponse(step=step, answer=head)
        for chunk in chunks(data, CHUNK_BYTES):
            yield join(message, chunk)
            message = pb.CoTrainResponse(step=step)

    def _send(self, data: bytes) -> Iterator[bytes]:
        self._patience.expect((self, "send"), self._requests.max_upload_s, self._cut_off)
        yield data
        self._patience.met((self, "send"))
        self._sent.inc(len(data))

    def _cut_off(self) -> None:
        log.warning("rank_too_slow", extra={"session": self._session.name, "rank": self._rank})
        self._context.cancel()
