"""One batch of a stream, from its first chunk to its answer."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from mixer_server.front.edge import REQUEST_KEYS
from mixer_server.front.in_flight import InFlight
from mixer_server.front.intake import Caller, Intake
from mixer_server.front.request_trace import note_stage, start_span
from mixer_server.metrics import UNKNOWN, MixerMetrics
from mixer_server.scheduling.budget import MemoryBudget, Reservation
from mixer_server.scheduling.job import Job
from samix.errors import BadBatch, MixerBroken, MixerCancelled, MixerError
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.pieces import Pieces, Scattered
from samix.request_keys import tidy_key
from samix.status import STATUS_OF
from samix.wire import MixReply

log = logging.getLogger(__name__)

CHUNK_BYTES = 2 << 20
"""Largest chunk that is taken and sent; any peer takes messages up to 4 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamServices:
    """What batches need of the server."""

    intake: Intake
    budget: MemoryBudget
    in_flight: InFlight
    metrics: MixerMetrics


class StreamBatch:
    """A batch that has begun. `close` it, whatever became of it; twice does no harm."""

    def __init__(self, message: pb.MixStreamRequest, caller: Caller, services: StreamServices) -> None:
        self.sequence = message.sequence
        """Its number on the stream."""
        self.is_refused = False
        """Whether there was no room for it when it began."""
        self._request = message.request
        self._num_bytes = message.pixel_bytes
        self._timeout_s = message.timeout_ms / 1000 or float("inf")
        self._caller = caller
        self._services = services
        self._began_s = time.perf_counter()
        self.key = tidy_key(message.request.key) or REQUEST_KEYS.next()
        """What logs and traces call it."""
        self._span = start_span("MixStream", self.key, message.request.traceparent, self._began_s)
        self._model = (UNKNOWN, UNKNOWN)
        self._pieces = Pieces()
        self._filled = 0
        self._reservation: Reservation | None = None
        self._error: MixerError | None = None
        self._job: Job | None = None
        self._failure = "it was not answered"  # unless it is
        self._closing = threading.Lock()  # taken once and kept

    @classmethod
    def begin(cls, message: pb.MixStreamRequest, caller: Caller, services: StreamServices) -> "StreamBatch":
        """Make room for a batch; where there is none, its chunks are dropped and it is refused."""
        batch = cls(message, caller, services)
        services.in_flight.enter()
        try:
            if message.request.pixels:  # nothing would read them, and they would be held as long as the batch
                raise BadBatch(
                    f"{len(message.request.pixels)} bytes of pixels came inside `request`; send them as chunks",
                    field="pixels",
                )
            footprint = services.intake.footprint_bytes(message.request, message.pixel_bytes)
            batch._reservation = services.budget.reserve(footprint)
        except MixerError as error:
            batch._error = _without_frames(error)
            batch.is_refused = True
        return batch

    @property
    def is_whole(self) -> bool:
        """Whether all its chunks are there, or no more will come."""
        return self._filled == self._num_bytes

    def add(self, chunk: memoryview) -> None:
        """Take the next bytes.

        Raises:
            BadBatch: if they are more than was said, or than a chunk may have.
        """
        start = self._filled  # read once: the end of the call sets it, on another thread
        end = start + len(chunk)
        if len(chunk) > CHUNK_BYTES or end > self._num_bytes:
            raise BadBatch(
                f"a chunk of {len(chunk)} bytes came, {self._num_bytes - start} of batch {self.sequence} were "
                f"missing, and a chunk may have {CHUNK_BYTES}"
            )
        if self._error is None:
            self._pieces.add(chunk)
        self._filled = end

    @property
    def is_settled(self) -> bool:
        """Whether `wait` would return at once."""
        job = self._job
        return self._error is not None or job is None or job.answer.done() or self.remaining_s == 0

    @property
    def remaining_s(self) -> float:
        """How long `wait` would wait at most, in seconds."""
        job = self._job  # `close` may let go of it meanwhile
        return 0.0 if job is None else self._services.intake.remaining_s(job)

    def submit(self, on_settled: Callable[[], None]) -> None:
        """Check the whole batch and queue it; what is wrong with it is said by `wait`.

        Args:
            on_settled: called when its job is done, on whatever thread.
        """
        pieces, self._pieces = self._pieces, Pieces()
        self.note_stage("receive", self._began_s)
        if self._error is not None:
            return
        try:
            self._job = self._services.intake.make_job(
                Scattered(self._request, pieces),
                self._caller,
                patience_s=max(self._timeout_s - (time.perf_counter() - self._began_s), 0.0),
                note_mixer=self._note_mixer,
                request=self.key,
                span=self._span,
            )
            self._job.answer.add_done_callback(lambda _answer: on_settled())
            self._services.intake.submit(self._job)
        except MixerError as error:
            self._error = _without_frames(error)
        except Exception:
            log.exception("batch_failed", extra={"client": self._caller.client, "request": self.key})
            self._error = MixerBroken("the server failed on this batch; its log has the reason")

    def wait(self) -> MixReply | MixerError:
        """Wait for the outcome, at most until the deadline, and count it."""
        outcome = self._outcome()
        self._failure = str(outcome) if isinstance(outcome, MixerError) else ""
        code = STATUS_OF[type(outcome)].name if isinstance(outcome, MixerError) else "OK"
        metrics = self._services.metrics
        metrics.requests.labels(*self._model, "MixStream", code).inc()
        if isinstance(outcome, MixerError):
            metrics.problems.note("MixStream", code, str(outcome))
        metrics.request_duration.labels("MixStream").observe(time.perf_counter() - self._began_s)
        return outcome

    def note_stage(self, name: str, started_s: float) -> None:
        """Trace a stage that ends now, where somebody traces; `started_s` on the clock of `time.perf_counter`."""
        note_stage(self._span, name, started_s)

    def give_up(self) -> None:
        """Drop the work: nobody waits for it."""
        self._error = self._error or MixerCancelled("the caller gave up")
        self._filled = self._num_bytes
        if self._job is not None:
            self._job.give_up()

    def close(self) -> None:
        """Give its memory back."""
        if not self._closing.acquire(blocking=False):  # by whom: reader, writer and the end of the call all close it
            return
        self._job = None  # its pixels must be gone when their memory counts as free
        if self._span is not None:
            self._span.end(self._failure)
        if self._reservation is not None:
            self._reservation.release()
        self._services.in_flight.leave()

    def _outcome(self) -> MixReply | MixerError:
        job = self._job  # `close` may let go of it meanwhile
        if self._error is not None or job is None:
            return self._error or MixerBroken("the batch was never queued")
        try:
            return self._services.intake.wait(job)
        except MixerError as error:
            return _without_frames(error)

    def _note_mixer(self, mixer: FrozenMixer) -> None:
        self._model = (mixer.name, mixer.version)


def _without_frames(error: MixerError) -> MixerError:
    # Its frames hold the batch, and those who keep it would be held by them: pixels would wait for the garbage
    # collector, which does not know how large they are.
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)
