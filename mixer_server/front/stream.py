"""One open MixStream: reads batches on one thread, writes their answers in the same order on another."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain

import grpc

from mixer_server.front.edge import parse
from mixer_server.front.intake import Caller
from mixer_server.front.patience import Patience
from mixer_server.front.request_config import RequestConfig
from mixer_server.front.stream_batch import CHUNK_BYTES, StreamBatch, StreamServices
from samix.errors import BadBatch, MixerBroken, MixerError
from samix.framing import chunks, join
from samix.mixer.v1 import mixer_pb2 as pb
from samix.status import to_refusal, to_status
from samix.wire import MixReply, encode_response

log = logging.getLogger(__name__)

METHOD = "MixStream"


class Stream:
    """Reads on the thread that calls `read`, writes on the one that iterates over `write`."""

    def __init__(
        self,
        context: grpc.ServicerContext,
        *,
        caller: Caller,
        config: RequestConfig,
        services: StreamServices,
        patience: Patience,
    ) -> None:
        self._context = context
        self._caller = caller
        self._config = config
        self._services = services
        self._patience = patience
        self._received_bytes = services.metrics.received_bytes.labels(METHOD)
        self._sent_bytes = services.metrics.sent_bytes.labels(METHOD)
        self._opened_s = time.perf_counter()
        self._changed = threading.Condition()
        self._answers: deque[StreamBatch] = deque()  # whole batches in the order they came
        self._writing: StreamBatch | None = None
        self._incoming: StreamBatch | None = None
        self._num_begun = 0
        self._failure: MixerError | None = None
        self._is_ending = False
        self._says_end = False  # until the client was told
        self._is_over = False  # nothing more is read

    def read(self, messages: Iterator[bytes]) -> None:
        """Read until the client half-closes, the stream fails, or it is gone."""
        try:
            self._await_batch()
            for data in messages:
                self._received_bytes.inc(len(data))
                self._take(data)
        except grpc.RpcError as error:  # how gRPC says that the call is over
            error.__traceback__ = None  # gRPC keeps the error, and with these frames it would keep the last chunk
        except MixerError as error:
            self._failure = error.with_traceback(None)  # its frames hold this stream, and all that waits on it
        except Exception:
            log.exception("stream_failed", extra=self._about())
            self._failure = MixerBroken("the server failed on this stream; its log has the reason")
        finally:
            self._finish()

    def write(self) -> Iterator[bytes]:
        """Yield the terms, then the answers; for gRPC, which sends them."""
        terms = pb.StreamTerms(
            credits=self._config.stream_credits,
            max_batches=self._config.max_stream_batches,
            max_chunk_bytes=CHUNK_BYTES,
        )
        yield from self._send(pb.MixStreamResponse(terms=terms).SerializeToString())
        while self._wait_for_news():
            if self._says_end:
                self._says_end = False
                yield from self._send(pb.MixStreamResponse(is_ending=True).SerializeToString())
                continue
            with self._changed:
                if not self._answers:  # abandoned
                    return
                # Before it is written: whoever has the answer may send the next batch at once.
                batch = self._writing = self._answers.popleft()
            yield from self._answer(batch)
        if self._failure is not None:
            self._context.abort_with_status(to_status(self._failure))

    def ask_to_end(self) -> None:
        """Tell the client, once, to send no more batches here; what was sent is answered."""
        with self._changed:
            if self._is_over or self._is_ending:
                return
            self._is_ending = self._says_end = True
            self._changed.notify_all()

    def abandon(self) -> None:
        """Let go of everything: the client is gone, or has all its answers."""
        self._patience.met((self, "send"))
        with self._changed:
            self._is_over = True
            batches = [*self._unanswered(), *([self._incoming] if self._incoming else [])]
            self._answers.clear()
            self._writing = None
            self._changed.notify_all()
        for batch in batches:
            batch.give_up()
            batch.close()

    def _finish(self) -> None:
        with self._changed:
            self._is_over = True
            incoming, self._incoming = self._incoming, None
            waiting = self._unanswered() if self._failure else []
            self._changed.notify_all()
        for kind in ("batch", "upload"):  # whoever is awaited is held
            self._patience.met((self, kind))
        if incoming is not None:
            incoming.close()
        for batch in waiting:  # a stream that failed ends at once
            batch.give_up()

    def _unanswered(self) -> list[StreamBatch]:
        """List the whole batches, the one that is being answered first; under the lock."""
        return [*([self._writing] if self._writing else []), *self._answers]

    def _wait_for_news(self) -> bool:
        with self._changed:
            while not self._has_news():
                self._changed.wait(self._answers[0].remaining_s if self._answers else None)
            return bool(self._answers or self._says_end) and self._context.is_active()

    def _has_news(self) -> bool:
        return self._says_end or (self._answers[0].is_settled if self._answers else self._is_over)

    def _wake(self) -> None:
        """Wake the writer if it has something to do, and not for each batch that only begins to wait."""
        with self._changed:
            if self._has_news():
                self._changed.notify_all()

    def _take(self, data: bytes) -> None:
        framed = parse(pb.MixStreamRequest, data)
        message = framed.message
        if message.cancel:
            self._cancel(message.sequence)
            return
        if message.HasField("request"):
            self._begin(message)
        batch = self._incoming
        if batch is None or message.sequence != batch.sequence:
            raise BadBatch(f"a chunk of batch {message.sequence} came, which is not the one being sent")
        batch.add(framed.bulk)
        if batch.is_whole:
            self._complete(batch)

    def _begin(self, message: pb.MixStreamRequest) -> None:
        if self._incoming is not None and not self._incoming.is_refused:
            raise BadBatch(f"batch {message.sequence} begins before batch {self._incoming.sequence} is whole")
        if message.sequence != self._num_begun + 1:
            raise BadBatch(f"sequence must be {self._num_begun + 1}, got {message.sequence}; number batches 1, 2, 3")
        if message.sequence > self._config.max_stream_batches:
            raise BadBatch(f"a stream takes {self._config.max_stream_batches} batches; open another")
        if len(self._answers) >= self._config.stream_credits:
            raise BadBatch(f"{self._config.stream_credits} batches are sent and not answered; wait for an answer")
        self._num_begun += 1
        self._incoming = StreamBatch.begin(message, self._caller, self._services)
        if self._incoming.is_refused:  # said at once, so that its client may stop sending it
            self._put(self._incoming)
        else:
            self._patience.met((self, "batch"))
            self._patience.expect((self, "upload"), self._config.max_upload_s, self._cut_off)

    def _complete(self, batch: StreamBatch) -> None:
        self._incoming = None
        if batch.is_refused:  # and that was said
            return
        self._patience.met((self, "upload"))
        batch.submit(self._wake)
        self._put(batch)

    def _put(self, batch: StreamBatch) -> None:
        with self._changed:
            if self._is_over:  # abandoned in between
                batch.give_up()
                batch.close()
            else:
                self._answers.append(batch)
            self._wake()
        self._await_batch()

    def _cancel(self, sequence: int) -> None:
        if self._incoming is not None and self._incoming.sequence == sequence:
            self._incoming.give_up()
            self._complete(self._incoming)
            return
        with self._changed:
            waiting = self._unanswered()
        for batch in waiting:  # the answer may have been faster
            if batch.sequence == sequence:
                batch.give_up()

    def _answer(self, batch: StreamBatch) -> Iterator[bytes]:
        outcome = batch.wait()
        if batch.sequence == 1:
            self._services.metrics.stream_first_batch.observe(time.perf_counter() - self._opened_s)
        encoding_s = time.perf_counter()
        messages = _messages(batch.sequence, outcome)
        first = next(messages)
        batch.note_stage("encode", encoding_s)
        for data in chain((first,), messages):
            yield from self._send(data)
        batch.close()

    def _send(self, data: bytes) -> Iterator[bytes]:
        self._patience.expect((self, "send"), self._config.max_upload_s, self._cut_off)
        yield data
        self._patience.met((self, "send"))
        self._sent_bytes.inc(len(data))

    def _await_batch(self) -> None:
        self._patience.expect((self, "batch"), self._config.stream_idle_s, self._idle)

    def _idle(self) -> None:
        with self._changed:
            if self._is_over or not self._answers:
                self._is_over = True
                self._changed.notify_all()
                return
        self._await_batch()

    def _cut_off(self) -> None:
        log.warning("stream_too_slow", extra={**self._about(), "limit_s": self._config.max_upload_s})
        self._context.cancel()

    def _about(self) -> dict[str, str]:
        """Say whose stream it is, and which batch is on its way up or down."""
        batch = self._incoming or self._writing
        return {"client": self._caller.client} | ({"request": batch.key} if batch else {})


def _messages(sequence: int, outcome: MixReply | MixerError) -> Iterator[bytes]:
    """Yield the messages that answer a batch."""
    if isinstance(outcome, MixerError):
        yield pb.MixStreamResponse(sequence=sequence, refusal=to_refusal(outcome)).SerializeToString()
        return
    framed = encode_response(outcome)
    message = pb.MixStreamResponse(sequence=sequence, response=framed.message, pixel_bytes=len(framed.bulk))
    for chunk in chunks(framed.bulk, CHUNK_BYTES):
        yield join(message, chunk)
        message = pb.MixStreamResponse(sequence=sequence)
