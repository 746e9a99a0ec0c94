"""The unary methods of samix.mixer.v1.MixerService: reads requests, waits for the engine, fills replies."""

import math
import time

import grpc

from mixer_server.front.description import describe
from mixer_server.front.edge import Call, Edge, caller_of, parent_of, parse, until_sent
from mixer_server.front.intake import Intake
from mixer_server.front.readiness import SERVICE, Readiness
from mixer_server.front.request_config import RequestConfig
from mixer_server.front.request_trace import note_stage, start_span
from mixer_server.hosting.registry import Registry
from mixer_server.metrics import MixerMetrics
from mixer_server.scheduling.budget import MemoryBudget
from mixer_server.scheduling.job import Job
from samix.errors import MixerCancelled
from samix.framing import Framed, join
from samix.mixer.v1 import mixer_pb2 as pb
from samix.request_keys import tidy_key
from samix.wire import encode_response


class MixerServicer:
    """Speaks gRPC only: what is computed, and when, is decided behind the batcher."""

    def __init__(
        self,
        config: RequestConfig,
        *,
        registry: Registry,
        readiness: Readiness,
        intake: Intake,
        budget: MemoryBudget,
        metrics: MixerMetrics,
    ) -> None:
        self._config = config
        self._registry = registry
        self._readiness = readiness
        self._intake = intake
        self._budget = budget
        self._metrics = metrics

    def attach(self, server: grpc.Server, edge: Edge, mix_stream: grpc.RpcMethodHandler) -> None:
        """Answer MixerService on this server."""
        methods = {"Mix": self.mix, "ListMixers": self.list_mixers, "GetMixer": self.get_mixer}
        handlers = {name: edge.wrap(name, method) for name, method in methods.items()}
        handlers["MixStream"] = mix_stream
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def mix(self, data: bytes, call: Call) -> bytes:
        """Mix one batch."""
        framed = parse(pb.MixRequest, data)
        footprint = self._intake.footprint_bytes(framed.message, len(framed.bulk))
        room = self._budget.reserve(footprint - len(framed.bulk))  # the message itself is counted as it comes
        with until_sent(room, call.context):
            reply = self._intake.wait(queue(self._intake, framed, call, "Mix"))
            encoding_s = time.perf_counter()
            with self._metrics.time_stage("encode"):
                answer = encode_response(reply)
                data = join(answer.message, answer.bulk)
            note_stage(call.span, "encode", encoding_s)
            return data

    def list_mixers(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """List the hosted mixers."""
        parse(pb.ListMixersRequest, data)
        mixers = [describe(mixer, max_images=self._config.max_images) for mixer in self._registry.mixers]
        return pb.ListMixersResponse(mixers=mixers).SerializeToString()

    def get_mixer(self, data: bytes, call: Call) -> bytes:
        """Describe one mixer."""
        mixer = self._registry.find(parse(pb.GetMixerRequest, data).message.name)
        call.is_about(mixer)
        self._readiness.check(mixer.name)  # clients wait for a server by asking for its mixer
        return pb.GetMixerResponse(mixer=describe(mixer, max_images=self._config.max_images)).SerializeToString()


def queue(intake: Intake, framed: Framed[pb.MixRequest], call: Call, method: str) -> Job:
    """Check a request of a unary call of this method, and queue it; it is given up when the call ends.

    Raises:
        MixerError: if it is refused.
    """
    call.key = tidy_key(framed.message.key) or call.key
    parent = framed.message.traceparent or parent_of(call.context)
    call.span = start_span(method, call.key, parent, call.began_s)
    job = intake.make_job(
        framed,
        caller_of(call.context),
        patience_s=_patience_s(call),
        note_mixer=call.is_about,
        request=call.key,
        span=call.span,
    )
    if not call.context.add_callback(job.give_up):
        raise MixerCancelled("the call ended before its work began")
    intake.submit(job)
    return job


def _patience_s(call: Call) -> float:
    remaining_s = call.context.time_remaining()  # None without a deadline
    return math.inf if remaining_s is None else remaining_s
