"""A real mixer server on a port of its own that fails as it is told: for tests of clients."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager

import grpc
import numpy as np
import torch
from framing import parts, whole
from scripted_streams import HangUp, Outcome, ScriptedStream, refusal, settle
from torchvision.io import ImageReadMode, decode_jpeg

from samix.client.retrying import ClientObserver, RetryReason
from samix.errors import MixerError, MixerNotFound
from samix.jpeg import JpegBatch
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixer.v1 import mixer_pb2_grpc
from samix.mixing.batch import MixPlan
from samix.mixing.frozen import FrozenMixer, random_mixer
from samix.mixing.presets import tiny_spec
from samix.mixing.render import Rendering, compose
from samix.pieces import as_array
from samix.status import to_refusal, to_status
from samix.wire import MixCall, MixReply, decode_request, encode_rendering, encode_response

RENDERING = Rendering(upsampling="bilinear", lam_margin=0.0)
PATIENCE_S = 20.0
Fault = MixerError | grpc.StatusCode | HangUp


class AsTold(Exception):
    """A fault that is no error of ours."""

    def __init__(self, fault: grpc.StatusCode | HangUp) -> None:
        super().__init__(fault)
        self.fault = fault


class ScriptedServicer(mixer_pb2_grpc.MixerServiceServicer):
    """Answers mixes by `predict`, after the failures in `faults`."""

    def __init__(self, predict: Callable[[MixCall], np.ndarray], rendering: Rendering = RENDERING) -> None:
        self.predict = predict
        self.rendering = rendering
        self.version = "v1"
        self.has_streams = True
        self.max_batches = 0
        self.num_streams = 0
        self.faults: deque[Fault] = deque()
        self.stalls: Callable[[MixCall], bool] = lambda _call: False
        self.gate = threading.Event()
        self.num_calls = 0
        self.active: set[int] = set()
        self.peak_active = 0
        self.changed = threading.Condition()

    def Mix(self, request: pb.MixRequest, context: grpc.ServicerContext) -> pb.MixResponse:
        number = self._enter()
        if not context.add_callback(lambda: self._leave(number)):
            self._leave(number)
        with self._failing(context):
            return self._answer(request)

    def MixStream(
        self, request_iterator: Iterator[pb.MixStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.MixStreamResponse]:
        if not self.has_streams:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "as told")
        stream = ScriptedStream(self._settle, self.max_batches)
        with self.changed:
            self.num_streams += 1
        if context.add_callback(stream.end):
            threading.Thread(target=stream.read, args=(request_iterator,), daemon=True).start()
            yield from stream.write(context)

    def GetMixer(self, request: pb.GetMixerRequest, context: grpc.ServicerContext) -> pb.GetMixerResponse:
        with self._failing(context):
            self._fail()
            if request.name not in ("", "tiny"):
                raise MixerNotFound(f"no mixer {request.name!r} here; there is: tiny")
            return pb.GetMixerResponse(mixer=self._info())

    def ListMixers(
        self,
        request: pb.ListMixersRequest,  # noqa: ARG002 - empty, but part of the interface
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> pb.ListMixersResponse:
        return pb.ListMixersResponse(mixers=[self._info()])

    def wait_until(self, condition: Callable[["ScriptedServicer"], bool]) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: condition(self), PATIENCE_S)

    def _settle(self, request: pb.MixRequest, outcome: "Future[Outcome]") -> None:
        """Answer a batch of a stream."""
        number = self._enter()
        outcome.add_done_callback(lambda _: self._leave(number))
        try:
            settle(outcome, self._answer(request))
        except MixerError as error:
            settle(outcome, to_refusal(error))
        except AsTold as told:
            settle(outcome, refusal(told.fault, "as told") if isinstance(told.fault, grpc.StatusCode) else told.fault)

    def _answer(self, request: pb.MixRequest) -> pb.MixResponse:
        call = decode_request(parts(request))
        if self.stalls(call):
            self.gate.wait(PATIENCE_S)
        self._fail()
        logits = self.predict(call)
        images = self._mixed(call, logits) if call.wants_images else None
        reply = MixReply(
            mixer="tiny", version=self.version, rendering=self.rendering, mask_logits=logits, images=images
        )
        return whole(encode_response(reply))

    def _info(self) -> pb.MixerInfo:
        return pb.MixerInfo(name="tiny", version=self.version, rendering=encode_rendering(self.rendering))

    def _mixed(self, call: MixCall, logits: np.ndarray) -> np.ndarray:
        plan = MixPlan(lam=torch.from_numpy(call.lam), partner=torch.from_numpy(call.partner))
        images = compose(torch.from_numpy(pixels_of(call)), None, plan, torch.from_numpy(logits), self.rendering).images
        return images.half().numpy() if call.image_dtype == np.float16 else images.mul(255).round().byte().numpy()

    def _fail(self) -> None:
        with self.changed:
            fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, MixerError):
            raise fault
        if fault is not None:
            raise AsTold(fault)

    @contextmanager
    def _failing(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Make a fault the status of a call."""
        try:
            yield
        except MixerError as error:
            context.abort_with_status(to_status(error))
        except AsTold as told:
            context.abort(told.fault if isinstance(told.fault, grpc.StatusCode) else told.fault.code, "as told")

    def _enter(self) -> int:
        with self.changed:
            self.num_calls += 1
            self.active.add(self.num_calls)
            self.peak_active = max(self.peak_active, len(self.active))
            self.changed.notify_all()
            return self.num_calls

    def _leave(self, number: int) -> None:
        with self.changed:
            self.active.discard(number)
            self.changed.notify_all()


def start_server(servicer: ScriptedServicer, port: int = 0) -> tuple[grpc.Server, int]:
    """Start a server on `port`, 0 for any, and return it with the port it got."""
    options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
    mixer_pb2_grpc.add_MixerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


@contextmanager
def serving(
    predict: Callable[[MixCall], np.ndarray], rendering: Rendering = RENDERING
) -> Iterator[tuple[ScriptedServicer, str]]:
    """Run a server; yields its servicer and the address."""
    servicer = ScriptedServicer(predict, rendering)
    server, port = start_server(servicer)
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        servicer.gate.set()
        server.stop(0).wait()


def pixels_of(call: MixCall) -> np.ndarray:
    """Return the pixels of a call, decoded, in memory of their own."""
    if not isinstance(call.pixels, JpegBatch):
        return as_array(call.pixels).copy()
    bounds, data = call.pixels.bounds(), call.pixels.data
    pictures = [torch.frombuffer(bytearray(data[start:end]), dtype=torch.uint8) for start, end in bounds]
    return np.stack([np.asarray(decode_jpeg(picture, ImageReadMode.RGB)) for picture in pictures])


def first_pixel(call: MixCall) -> int:
    """Return the first value of a batch, by which tests tell batches apart."""
    return int(pixels_of(call).flat[0])


def contrast_logits(call: MixCall) -> np.ndarray:
    """Prefer the brighter image of a pair, on a 4 x 4 grid: cheap at any size, and different everywhere."""
    batch, _, height, width = call.pixels.shape
    grey = torch.from_numpy(pixels_of(call))[:, :1, : height // 4 * 4, : width // 4 * 4].float()
    pooled = torch.nn.functional.adaptive_avg_pool2d(grey, 4)
    logits = (pooled - pooled[torch.from_numpy(call.partner)]) / 16 + torch.from_numpy(call.lam).view(batch, 1, 1, 1)
    return logits.clamp(-30, 30).half().numpy()


def lively_mixer() -> FrozenMixer:
    """Make a tiny mixer whose masks, unlike those of fresh weights, are far from constant."""
    mixer = random_mixer(tiny_spec(), seed=0, name="tiny")
    generator = torch.Generator().manual_seed(3)
    for name, parameter in mixer.net.block.named_parameters():
        scale = 0.0 if "bias" in name else 1.0 if name.startswith("content") else 10.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return mixer


def predict_with(mixer: FrozenMixer) -> Callable[[MixCall], np.ndarray]:
    """Answer with the logits of a mixer in this process."""

    def predict(call: MixCall) -> np.ndarray:
        plan = MixPlan(lam=torch.from_numpy(call.lam), partner=torch.from_numpy(call.partner))
        return mixer.mask_logits(torch.from_numpy(pixels_of(call)), plan).half().numpy()

    return predict


class Tally(ClientObserver):
    """Counts what a client reports."""

    def __init__(self) -> None:
        self.sent_bytes: list[int] = []
        self.received_bytes: list[int] = []
        self.seconds: list[float] = []
        self.retries: list[RetryReason] = []
        self.num_hedges = 0
        self.first_retry = threading.Event()
        self.first_answer = threading.Event()

    def sent(self, num_bytes: int) -> None:
        self.sent_bytes.append(num_bytes)

    def received(self, num_bytes: int, seconds: float) -> None:
        self.received_bytes.append(num_bytes)
        self.seconds.append(seconds)
        self.first_answer.set()

    def retried(self, reason: RetryReason) -> None:
        self.retries.append(reason)
        self.first_retry.set()

    def hedged(self) -> None:
        self.num_hedges += 1
