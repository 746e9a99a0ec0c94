"""The methods of samix.mixer.v1.MixerService: reads requests, refuses what cannot be served, waits for the engine."""

from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial

import grpc

from mixer_server.batcher import Batcher
from mixer_server.edge import Call, Edge, parse
from mixer_server.job import GroupKey, Job
from mixer_server.limits import check_seconds
from mixer_server.metrics import MixerMetrics
from mixer_server.readiness import SERVICE, Readiness
from mixer_server.registry import Registry
from samix.errors import BadBatch, ConfigError, MixerCancelled, MixerTimeout
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.frozen import FrozenMixer
from samix.wire import PIXEL_FORMATS, MixReply, Shape, decode_request, encode_rendering, encode_response

_GRPC_MAX_MIB = 2047  # its sizes are signed 32-bit numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestConfig:
    """What a single request may ask for."""

    max_images: int = 256
    """Most images in one request; at most batching.max-queue-images."""
    max_message_mib: int = 64
    """Largest message that is read, in MiB, and the most pixels that JPEGs may hold: 256 images of 224 pixels are 37.
    gRPC reads 2047 at most."""
    max_upload_s: float = 30.0
    """Longest a call may take to send its message, in seconds; it is cancelled then."""
    max_wait_s: float = 60.0
    """Longest a request waits for its answer, in seconds, whatever deadline its caller has set."""
    max_in_flight: int = 64
    """Most calls of one method at once, from their headers to their answer; further ones are refused with a hint when
    to come again."""

    def __post_init__(self) -> None:
        for name in ("max_images", "max_message_mib", "max_in_flight"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"requests.{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        if self.max_message_mib > _GRPC_MAX_MIB:
            raise ConfigError(
                f"requests.max-message-mib must be at most {_GRPC_MAX_MIB}, all that gRPC can read, "
                f"got {self.max_message_mib}"
            )
        check_seconds("requests.max-upload-s", self.max_upload_s)
        check_seconds("requests.max-wait-s", self.max_wait_s)


class MixerServicer:
    """Speaks gRPC only: what is computed, and when, is decided behind the batcher."""

    def __init__(
        self,
        config: RequestConfig,
        *,
        registry: Registry,
        readiness: Readiness,
        batcher: Batcher,
        metrics: MixerMetrics,
    ) -> None:
        self._config = config
        self._registry = registry
        self._readiness = readiness
        self._batcher = batcher
        self._metrics = metrics

    def attach(self, server: grpc.Server, edge: Edge) -> None:
        """Answer MixerService on this server."""
        methods = {"Mix": self.mix, "ListMixers": self.list_mixers, "GetMixer": self.get_mixer}
        handlers = {name: edge.wrap(name, method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def mix(self, data: bytes, call: Call) -> bytes:
        """Mix one batch."""
        with self._metrics.time_stage("decode"):
            request = parse(pb.MixRequest, data)
            mixer = self._registry.find(request.mixer, request.version)
            call.is_about(mixer)
            self._readiness.check(mixer.name)
            job = self._make_job(mixer, request, call.context)
        reply = self._compute(job, call.context)
        with self._metrics.time_stage("encode"):
            return encode_response(reply).SerializeToString()

    def list_mixers(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """List the hosted mixers."""
        parse(pb.ListMixersRequest, data)
        mixers = [self._describe(mixer) for mixer in self._registry.mixers]
        return pb.ListMixersResponse(mixers=mixers).SerializeToString()

    def get_mixer(self, data: bytes, call: Call) -> bytes:
        """Describe one mixer."""
        mixer = self._registry.find(parse(pb.GetMixerRequest, data).name)
        call.is_about(mixer)
        self._readiness.check(mixer.name)  # clients wait for a server by asking for its mixer
        return pb.GetMixerResponse(mixer=self._describe(mixer)).SerializeToString()

    def _make_job(self, mixer: FrozenMixer, request: pb.MixRequest, context: grpc.ServicerContext) -> Job:
        call = decode_request(request, partial(self._check_shape, mixer))
        _, _, height, width = call.pixels.shape
        return Job(
            key=GroupKey(mixer.name, mixer.version, height, width, call.pixels.dtype.name),
            call=call,
            max_pass_images=self._batcher.max_pass_images(mixer.spec.tokens(height, width)),
            deadline_s=self._batcher.clock() + self._patience_s(context),
        )

    def _check_shape(self, mixer: FrozenMixer, shape: Shape) -> None:
        num_images, _, height, width = shape
        mixer.spec.check_size(height, width)
        max_pass_images = self._batcher.max_pass_images(mixer.spec.tokens(height, width))
        max_pixel_images = (self._config.max_message_mib << 20) // (3 * height * width)  # a few kB of JPEG hold many
        if num_images > (most := min(self._config.max_images, max_pass_images, max_pixel_images)):
            raise BadBatch(
                f"{num_images} images of {height} x {width} in one request, this server takes {most} of that size; "
                "send smaller batches"
            )

    def _patience_s(self, context: grpc.ServicerContext) -> float:
        remaining_s = context.time_remaining()  # None without a deadline
        return self._config.max_wait_s if remaining_s is None else min(remaining_s, self._config.max_wait_s)

    def _compute(self, job: Job, context: grpc.ServicerContext) -> MixReply:
        if not context.add_callback(job.give_up):
            raise MixerCancelled("the call ended before its work began")
        self._batcher.submit(job)
        try:
            return job.answer.result(job.deadline_s - self._batcher.clock())
        except TimeoutError as error:
            job.give_up()
            raise MixerTimeout("no answer came before the deadline, the caller's or the server's own") from error
        except CancelledError as error:  # also how gRPC says that the caller's deadline has passed
            if context.time_remaining() == 0:
                raise MixerTimeout("the caller's deadline passed before the answer came") from error
            raise MixerCancelled("the caller gave up") from error

    def _describe(self, mixer: FrozenMixer) -> pb.MixerInfo:
        spec = mixer.spec
        return pb.MixerInfo(
            name=mixer.name,
            version=mixer.version,
            sha256=mixer.sha256,
            encoder=spec.backbone.name,
            stage=spec.stage,
            mode=spec.mode,
            rendering=encode_rendering(spec.rendering),
            min_side=spec.min_side,
            max_side=spec.max_side,
            max_images=self._config.max_images,
            max_tokens=spec.max_tokens,
            stride=spec.stride,
            pixel_formats=PIXEL_FORMATS,
        )
