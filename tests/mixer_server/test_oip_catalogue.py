"""What a server says of itself and its models by the Open Inference Protocol, over gRPC."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from inference_requests import ask_for_inference, infer_request, tensors_of
from serving import WAIT_S, Gate, health_of, random_call, serve, serve_folder, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.front.readiness import INFERENCE_SERVICE
from mixer_server.front.request_config import RequestConfig
from samix.inference.v2 import inference_pb2 as pb
from samix.inference.v2.inference_pb2_grpc import GRPCInferenceServiceStub
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer

REQUEST = infer_request(tensors_of(random_call()))
METHODS_OF_MODELS = ["ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"]


@pytest.fixture(scope="session")
def inference(server: MixerServer) -> Iterator[GRPCInferenceServiceStub]:
    with ask_for_inference(server.addresses["grpc"]) as connected:
        yield connected


def test_a_server_lives_and_is_ready(inference: GRPCInferenceServiceStub, mixer: FrozenMixer):
    """A server that has started is live and ready, as are its models, by name and by version."""
    names = [pb.ModelReadyRequest(name="tiny"), pb.ModelReadyRequest(name="tiny", version=mixer.version)]

    assert inference.ServerLive(pb.ServerLiveRequest(), timeout=WAIT_S).live
    assert inference.ServerReady(pb.ServerReadyRequest(), timeout=WAIT_S).ready
    assert all(inference.ModelReady(name, timeout=WAIT_S).ready for name in names)


def test_a_server_describes_itself(inference: GRPCInferenceServiceStub):
    """Name and version are the program's, and the extensions those that are spoken."""
    server = inference.ServerMetadata(pb.ServerMetadataRequest(), timeout=WAIT_S)

    assert server.name == "samix-service"
    assert server.version
    assert list(server.extensions) == ["model_configuration", "statistics"]


def test_a_model_describes_its_tensors(inference: GRPCInferenceServiceStub, mixer: FrozenMixer):
    """A model has versions, tensors and what a client must know to make masks of logits."""
    model = inference.ModelMetadata(pb.ModelMetadataRequest(name="tiny"), timeout=WAIT_S)

    assert (model.name, list(model.versions), model.platform) == ("tiny", [mixer.version], "samix")
    inputs, outputs = (
        {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in tensors}
        for tensors in (model.inputs, model.outputs)
    )
    plan = {"lam": ("FP32", [-1]), "index": ("INT32", [-1])}
    assert inputs == {"images": ("UINT8", [-1, 3, -1, -1]), "jpeg": ("BYTES", [-1]), **plan}
    assert outputs == {"mask_logits": ("FP16", [-1, 1, -1, -1]), "mixed": ("UINT8", [-1, 3, -1, -1]), **plan}
    assert model.properties["upsampling"] == "bilinear"
    assert float(model.properties["lam_margin"]) == mixer.spec.rendering.lam_margin
    assert model.properties["max_images"] == str(RequestConfig().max_images)


def test_a_model_says_how_it_is_run(inference: GRPCInferenceServiceStub):
    """The configuration has the tensors of the description, and lets nobody cut or join batches."""
    model = inference.ModelMetadata(pb.ModelMetadataRequest(name="tiny"), timeout=WAIT_S)

    config = inference.ModelConfig(pb.ModelConfigRequest(name="tiny"), timeout=WAIT_S).config

    assert (config.name, config.max_batch_size) == ("tiny", 0)
    assert [(i.name, list(i.dims)) for i in config.input] == [(i.name, list(i.shape)) for i in model.inputs]
    assert [(o.name, list(o.dims)) for o in config.output] == [(o.name, list(o.shape)) for o in model.outputs]
    assert [i.name for i in config.input if i.optional] == ["jpeg", "lam", "index"]
    assert [i.data_type for i in config.input] == [pb.TYPE_UINT8, pb.TYPE_STRING, pb.TYPE_FP32, pb.TYPE_INT32]
    assert {name: value.string_value for name, value in config.parameters.items()} == dict(model.properties)


@pytest.mark.parametrize("method", METHODS_OF_MODELS)
@pytest.mark.parametrize("names", [{"name": "ghost"}, {"name": "tiny", "version": "0000"}])
def test_unknown_models(inference: GRPCInferenceServiceStub, method: str, names: dict[str, str]):
    """A model or version that is not hosted is NOT_FOUND, and the answer names what is."""
    request = getattr(pb, f"{method}Request")(**names)

    with pytest.raises(grpc.RpcError) as caught:
        getattr(inference, method)(request, timeout=WAIT_S)

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "'tiny'" in str(caught.value.details())


def test_there_is_one_repository(inference: GRPCInferenceServiceStub):
    """A repository that is named is refused: there is none of a name."""
    call = inference.RepositoryIndex.future(pb.RepositoryIndexRequest(repository_name="other"), timeout=WAIT_S)

    assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "repository_name must be empty, got 'other'" in call.details()


def test_statistics_count_what_was_done(mixer: FrozenMixer):
    """Images, passes, requests that were answered and refused, and where their time went."""
    with serve(mixer) as server, ask_for_inference(server.addresses["grpc"]) as inference:
        for _ in range(3):
            inference.ModelInfer(REQUEST, timeout=WAIT_S)
        inference.ModelInfer.future(infer_request({}), timeout=WAIT_S).code()
        answers = [
            inference.ModelStatistics(pb.ModelStatisticsRequest(**names), timeout=WAIT_S).model_stats
            for names in ({}, {"name": "tiny"}, {"name": "tiny", "version": mixer.version})
        ]

    (stats,) = answers[0]
    assert answers[0] == answers[1] == answers[2]
    assert (stats.name, stats.version) == ("tiny", mixer.version)
    assert (stats.inference_count, stats.execution_count) == (12, 3)
    assert stats.last_inference > 1_700_000_000_000
    spent = stats.inference_stats
    parts = (spent.queue, spent.compute_input, spent.compute_infer, spent.compute_output)
    assert [part.count for part in (spent.success, *parts)] == [3] * 5
    assert spent.fail.count == 1
    assert all(part.ns > 0 for part in (spent.fail, *parts))
    assert sum(part.ns for part in parts) <= spent.success.ns + 10


def test_requests_of_one_pass_are_one_execution(gated: tuple[FrozenMixer, Gate]):
    """Requests that are computed together count as one execution."""
    mixer, gate = gated
    with (
        serve(mixer) as server,
        ask_for_inference(server.addresses["grpc"]) as inference,
        ThreadPoolExecutor(4) as pool,
    ):
        gate.shut()
        held = pool.submit(inference.ModelInfer, REQUEST, timeout=WAIT_S)
        gate.wait_until_held()
        waiting = [pool.submit(inference.ModelInfer, REQUEST, timeout=WAIT_S) for _ in range(3)]
        with server.batcher._changed:
            assert server.batcher._changed.wait_for(lambda: server.batcher.num_requests == 3, WAIT_S)
        gate.open()
        for answer in (held, *waiting):
            answer.result()
        (stats,) = inference.ModelStatistics(pb.ModelStatisticsRequest(), timeout=WAIT_S).model_stats

    assert (stats.inference_count, stats.execution_count) == (16, 2)


def test_models_come_and_go(tmp_path: Path):
    """Index, description and statistics follow what is hosted; each version answers for itself."""
    old, new = tiny_mixer(seed=1), tiny_mixer(seed=2)
    file = tmp_path / "tiny.safetensors"
    save_artefact(file, old, {})
    with (
        serve_folder(tmp_path, model_control="poll") as server,
        ask_for_inference(server.addresses["grpc"]) as inference,
    ):
        inference.ModelInfer(REQUEST, timeout=WAIT_S)
        save_artefact(file, new, {})
        server.repository.scan()
        pinned = infer_request(tensors_of(random_call()), model_version=old.version)
        versions = [inference.ModelInfer(ask, timeout=WAIT_S).model_version for ask in (REQUEST, pinned)]
        listed = inference.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=WAIT_S).models
        stats = inference.ModelStatistics(pb.ModelStatisticsRequest(), timeout=WAIT_S).model_stats
        file.unlink()
        server.repository.scan()
        left = inference.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=WAIT_S).models
        forgotten = inference.ModelStatistics(pb.ModelStatisticsRequest(), timeout=WAIT_S).model_stats
        save_artefact(file, new, {})
        server.repository.scan()
        again = inference.ModelStatistics(pb.ModelStatisticsRequest(), timeout=WAIT_S).model_stats

    assert versions == [new.version, old.version]
    assert [(model.version, model.state) for model in listed] == [(new.version, "READY"), (old.version, "READY")]
    assert [(one.version, one.inference_count) for one in stats] == [(new.version, 4), (old.version, 8)]
    assert not left
    assert not forgotten
    assert [(one.version, one.inference_count) for one in again] == [(new.version, 0)]


def test_a_server_that_drains_is_not_ready(gated: tuple[FrozenMixer, Gate]):
    """While it drains a server lives, is not ready, refuses work as unavailable, and answers what it has accepted."""
    mixer, gate = gated
    with (
        serve(mixer) as server,
        ask_for_inference(server.addresses["grpc"]) as inference,
        ThreadPoolExecutor(2) as pool,
    ):
        gate.shut()
        accepted = pool.submit(inference.ModelInfer, REQUEST, timeout=WAIT_S)
        gate.wait_until_held()
        stopped = pool.submit(server.stop)
        with server.batcher._changed:
            assert server.batcher._changed.wait_for(lambda: server.batcher._is_closed, WAIT_S)

        live = inference.ServerLive(pb.ServerLiveRequest(), timeout=WAIT_S).live
        ready = inference.ServerReady(pb.ServerReadyRequest(), timeout=WAIT_S).ready
        model_ready = inference.ModelReady(pb.ModelReadyRequest(name="tiny"), timeout=WAIT_S).ready
        (listed,) = inference.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=WAIT_S).models
        refused = inference.ModelInfer.future(REQUEST, timeout=WAIT_S).code()
        gate.open()

        assert accepted.result().model_name == "tiny"
        assert stopped.result()
    assert (live, ready, model_ready) == (True, False, False)
    assert (listed.state, listed.reason) == ("UNAVAILABLE", "server is shutting down")
    assert refused is grpc.StatusCode.UNAVAILABLE


def test_health_knows_the_service(server: MixerServer):
    """The standard health check answers for the protocol's service."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        request = health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE)
        status = health_of(channel).Check(request, timeout=WAIT_S).status

    assert status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_is_enough_to_ask(server: MixerServer, mixer: FrozenMixer):
    """A tool that has nothing but reflection finds the service, resolves its messages, and gets a batch mixed."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = database.get_services()
        pool = DescriptorPool(database)
        infer = pool.FindServiceByName(INFERENCE_SERVICE).methods_by_name["ModelInfer"]
        request, response = (GetMessageClass(kind) for kind in (infer.input_type, infer.output_type))
        message = request.FromString(REQUEST.SerializeToString())
        call = channel.unary_unary(f"/{INFERENCE_SERVICE}/{infer.name}")

        answer = response.FromString(call(message.SerializeToString(), timeout=WAIT_S))

    assert INFERENCE_SERVICE in services
    told = json_format.MessageToDict(answer)
    assert (told["modelName"], told["modelVersion"]) == ("tiny", mixer.version)
    assert len(base64.b64decode(told["rawOutputContents"][0])) == 2 * 4 * 8 * 8
