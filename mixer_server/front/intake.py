"""From a request to a job in the queue, and from the job to its reply: what unary calls and streams have in common."""

import math
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial

from mixer_server.engine.passes import Passes
from mixer_server.front.readiness import Readiness
from mixer_server.front.request_config import RequestConfig
from mixer_server.front.request_trace import note_passage, note_stage
from mixer_server.front.shared_memory import SharedMemory
from mixer_server.hosting.registry import Registry
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.batcher import Batcher
from mixer_server.scheduling.job import GroupKey, Job
from samix.errors import BadBatch, MixerCancelled, MixerTimeout
from samix.framing import Framed, as_bytes
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.pieces import Scattered
from samix.tracing import Span
from samix.wire import MixCall, MixReply, PixelsOf, Shape, decode_request
from services.log_context import about_request

_PARSED_BYTES = 8  # of memory for each byte of a message: numbers of one byte become four, and lists grow by doubling
_EARLY_S = 0.05  # gRPC's clock and ours need not agree to the millisecond on when a deadline has passed


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Where requests come from."""

    client: str
    """Whose they are; clients get equal shares."""
    peer: str
    """Address, in gRPC's words."""


class Intake:
    """Checks requests, makes jobs of them and waits for their replies. Safe for threads."""

    def __init__(
        self,
        config: RequestConfig,
        *,
        registry: Registry,
        readiness: Readiness,
        batcher: Batcher,
        passes: Passes,
        metrics: MixerMetrics,
        shared_memory: SharedMemory | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._readiness = readiness
        self._batcher = batcher
        self._passes = passes
        self._metrics = metrics
        self._shared_memory = shared_memory

    def footprint_bytes(self, request: pb.MixRequest, pixel_bytes: int) -> int:
        """Say how much memory a request will hold: what comes, JPEGs decoded, and images that go back.

        Raises:
            BadBatch: if it is more than a request may hold.
        """
        limit = self._config.max_message_mib << 20
        if pixel_bytes > limit:
            raise BadBatch(
                f"{pixel_bytes} bytes of pixels in one request, this server takes {limit}; send smaller batches",
                field="pixels",
            )
        # No more than belong there: a product of 100,000 numbers takes 17 s, in which Python does nothing else.
        decoded = min(math.prod(request.shape[:4]), limit)
        footprint = pixel_bytes + _PARSED_BYTES * request.ByteSize()
        if request.pixel_format == pb.PIXEL_FORMAT_JPEG:
            footprint += decoded
        if request.reply_format in (pb.REPLY_FORMAT_IMAGES, pb.REPLY_FORMAT_IMAGES_FLOAT16):
            footprint += decoded * (2 if request.reply_format == pb.REPLY_FORMAT_IMAGES_FLOAT16 else 1)
        return footprint

    def make_job(
        self,
        framed: Framed[pb.MixRequest] | Scattered[pb.MixRequest],
        caller: Caller,
        *,
        patience_s: float,
        note_mixer: Callable[[FrozenMixer], None],
        request: str,
        span: Span | None = None,
    ) -> Job:
        """Check a request, decode its pictures, and make a job of it.

        Args:
            framed: the request.
            caller: whose it is.
            patience_s: how long its caller waits for the answer, in seconds.
            note_mixer: told which hosted mixer it is about, as soon as that is known.
            request: its key, for logs.
            span: gets its stages; None where nothing is traced.

        Raises:
            BadBatch: if something is wrong with it.
            MixerNotFound, MixerUnavailable: if its mixer is not here, or takes no work.
        """
        deadline_s = self._batcher.clock() + min(patience_s, self._config.max_wait_s)
        began_s = time.perf_counter()
        with self._metrics.time_stage("decode"), about_request(request):
            mixer = self._registry.find(framed.message.mixer, framed.message.version)
            note_mixer(mixer)
            self._readiness.check(mixer.name, mixer.version)
            call = decode_request(framed, partial(self.check_shape, mixer), self._pixels_of(caller))
            call = self._passes.prepare(mixer, call)
        note_stage(span, "decode", began_s)
        job = self._job(mixer, call, caller.client, deadline_s)
        job.request, job.span = request, span
        return job

    def make_own_job(self, mixer: FrozenMixer, call: MixCall, client: str, request: str) -> Job:
        """Make a job of a batch that was not sent here but made here, and whose shape `check_shape` has seen."""
        deadline_s = self._batcher.clock() + self._config.max_wait_s
        job = self._job(mixer, self._passes.prepare(mixer, call), client, deadline_s)
        job.request = request
        return job

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            MixerOverloaded, MixerUnavailable: if it is refused.
        """
        self._batcher.submit(job)

    def remaining_s(self, job: Job) -> float:
        """Say how long its caller still waits, in seconds."""
        return max(job.deadline_s - self._batcher.clock(), 0)

    def wait(self, job: Job) -> MixReply:
        """Wait for the reply, at most until the job's deadline.

        Raises:
            MixerError: why there is none.
        """
        try:
            return job.answer.result(self.remaining_s(job))
        except TimeoutError as error:
            job.give_up()
            raise MixerTimeout("no answer came before the deadline, the caller's or the server's own") from error
        except CancelledError as error:  # also how gRPC says that the caller's deadline has passed
            if self._batcher.clock() >= job.deadline_s - _EARLY_S:
                raise MixerTimeout("the caller's deadline passed before the answer came") from error
            raise MixerCancelled("the caller gave up") from error
        finally:
            note_passage(job, self._batcher.clock())

    def _pixels_of(self, caller: Caller) -> PixelsOf | None:
        memory = self._shared_memory
        if memory is None:
            return None
        return lambda shared, num_bytes: as_bytes(memory.view(shared.lease, shared.offset, num_bytes, caller.peer))

    def check_shape(self, mixer: FrozenMixer, shape: Shape) -> None:
        """Refuse a batch that is too large for a mixer or for this server.

        Raises:
            BadBatch: with the limit.
        """
        num_images, _, height, width = shape
        mixer.spec.check_size(height, width)
        max_pass_images = self._batcher.max_pass_images(mixer.spec.tokens(height, width))
        max_pixel_images = (self._config.max_message_mib << 20) // (3 * height * width)  # a few kB of JPEG hold many
        if num_images > (most := min(self._config.max_images, max_pass_images, max_pixel_images)):
            raise BadBatch(
                f"{num_images} images of {height} x {width} in one request, this server takes {most} of that size; "
                "send smaller batches",
                field="shape",
            )

    def _job(self, mixer: FrozenMixer, call: MixCall, client: str, deadline_s: float) -> Job:
        _, _, height, width = call.pixels.shape
        return Job(
            key=GroupKey(mixer.name, mixer.version, height, width, call.pixels.dtype.str),
            mixer=mixer,
            call=call,
            max_pass_images=self._batcher.max_pass_images(mixer.spec.tokens(height, width)),
            deadline_s=deadline_s,
            client=client,
            priority=call.priority,
        )
