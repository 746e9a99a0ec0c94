"""The methods of inference.GRPCInferenceService: reads requests, waits for the engine, fills replies."""

import time

import grpc

from mixer_server.front.edge import Call, Edge, parse, until_sent
from mixer_server.front.intake import Intake
from mixer_server.front.readiness import INFERENCE_SERVICE, Readiness
from mixer_server.front.request_trace import note_stage
from mixer_server.front.servicer import queue
from mixer_server.hosting.registry import Registry
from mixer_server.metrics import MixerMetrics
from mixer_server.oip.catalogue import Catalogue
from mixer_server.oip.inference import encode_answer, extra_bytes, read_inference
from mixer_server.oip.inputs import parse_request
from mixer_server.oip.statistics import Statistics, Times
from mixer_server.scheduling.budget import MemoryBudget
from samix.errors import BadBatch
from samix.inference.v2 import inference_pb2 as pb
from samix.mixing.frozen import FrozenMixer

NUM_METHODS = 9


class InferenceServicer:
    """Speaks the protocol only: what is computed, and when, is decided behind the batcher."""

    def __init__(
        self,
        *,
        registry: Registry,
        readiness: Readiness,
        intake: Intake,
        budget: MemoryBudget,
        metrics: MixerMetrics,
        max_images: int,
    ) -> None:
        self._registry = registry
        self._readiness = readiness
        self._intake = intake
        self._budget = budget
        self._metrics = metrics
        self._max_images = max_images
        self._catalogue = Catalogue(registry, readiness, max_images)
        self._statistics = Statistics()

    def attach(self, server: grpc.Server, edge: Edge) -> None:
        """Answer GRPCInferenceService on this server."""
        methods = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ServerMetadata": self.server_metadata,
            "ModelMetadata": self.model_metadata,
            "ModelInfer": self.model_infer,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
        }
        assert len(methods) == NUM_METHODS
        handlers = {name: edge.wrap(name, method) for name, method in methods.items()}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INFERENCE_SERVICE, handlers),))

    def server_live(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002 - every method has this signature
        """Say that the server lives."""
        parse(pb.ServerLiveRequest, data)
        return pb.ServerLiveResponse(live=True).SerializeToString()

    def server_ready(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002
        """Say whether the server is ready."""
        parse(pb.ServerReadyRequest, data)
        return pb.ServerReadyResponse(ready=self._catalogue.is_ready).SerializeToString()

    def model_ready(self, data: bytes, call: Call) -> bytes:
        """Say whether a model is ready."""
        request = parse(pb.ModelReadyRequest, data).message
        call.is_about(self._registry.find(request.name, request.version))
        ready = self._catalogue.is_model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    def server_metadata(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002
        """Describe the server."""
        parse(pb.ServerMetadataRequest, data)
        return self._catalogue.server().SerializeToString()

    def model_metadata(self, data: bytes, call: Call) -> bytes:
        """Describe a model's tensors."""
        request = parse(pb.ModelMetadataRequest, data).message
        call.is_about(self._registry.find(request.name, request.version))
        return self._catalogue.model(request.name, request.version).SerializeToString()

    def model_config(self, data: bytes, call: Call) -> bytes:
        """Say how a model is run."""
        request = parse(pb.ModelConfigRequest, data).message
        call.is_about(self._registry.find(request.name, request.version))
        config = self._catalogue.config(request.name, request.version)
        return pb.ModelConfigResponse(config=config).SerializeToString()

    def model_statistics(self, data: bytes, call: Call) -> bytes:
        """Say what models have done."""
        request = parse(pb.ModelStatisticsRequest, data).message
        mixers = self._registry.mixers
        if request.name or request.version:
            found = self._registry.find(request.name, request.version)
            call.is_about(found)
            mixers = [found] if request.version else self._registry.versions(found.name)
        return self._statistics.read(mixers).SerializeToString()

    def repository_index(self, data: bytes, call: Call) -> bytes:  # noqa: ARG002
        """List the models."""
        request = parse(pb.RepositoryIndexRequest, data).message
        if request.repository_name:
            raise BadBatch(
                f"repository_name must be empty, got {request.repository_name!r:.60}; there is one repository",
                field="repository_name",
            )
        return self._catalogue.index(only_ready=request.ready).SerializeToString()

    def model_infer(self, data: bytes, call: Call) -> bytes:
        """Mix one batch."""
        began_s = time.perf_counter()
        request, raws = parse_request(data)
        mixer = self._registry.find(request.model_name, request.model_version)
        call.is_about(mixer)
        self._readiness.check(mixer.name, mixer.version)
        try:
            return self._infer(request, raws, mixer, call, began_s)
        except BaseException:
            self._statistics.count_failure(mixer, time.perf_counter() - began_s)
            raise

    def _infer(
        self, request: pb.ModelInferRequest, raws: list[memoryview], mixer: FrozenMixer, call: Call, began_s: float
    ) -> bytes:
        with until_sent(self._budget.reserve(extra_bytes(request, raws)), call.context) as room:
            inference = read_inference(request, raws, mixer, self._max_images)
            framed = inference.framed
            footprint = self._intake.footprint_bytes(framed.message, len(framed.bulk))
            room.resize(room.num_bytes + footprint - len(framed.bulk))  # the message itself is counted as it comes
            framed.message.key = request.id
            job = queue(self._intake, framed, call, "ModelInfer")
            queued_s = time.perf_counter()
            reply = self._intake.wait(job)
            answered_s = time.perf_counter()
            with self._metrics.time_stage("encode"):
                answer = encode_answer(inference, reply)
        note_stage(call.span, "encode", answered_s)
        ended_s = time.perf_counter()
        waited_s = job.started_s - job.arrived_s
        times = Times(
            whole_s=ended_s - began_s,
            input_s=queued_s - began_s,
            queue_s=waited_s,
            pass_s=answered_s - queued_s - waited_s,
            output_s=ended_s - answered_s,
        )
        self._statistics.count_answer(mixer, job.num_images, times, job.started_s)
        return answer
