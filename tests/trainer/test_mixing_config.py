"""Which mixer a run uses, and what is refused before its first step."""

import socket
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import grpc
import pytest
from serving import sample, serve, tiny_mixer
from training import ALONE, NUM_CLASSES, SIDE, make_batch

from mixer_server.app import MixerServer
from mixer_server.front.request_config import RequestConfig
from samix.client.config import Exchange
from samix.errors import ArtefactError, ConfigError, InputError
from samix.mixer.v1 import mixer_pb2 as pb
from samix.mixing.policies import PolicyName
from samix.mixing.presets import TINY_RESNET
from samix.shared_memory import is_supported
from trainer.metrics import TrainerMetrics
from trainer.mixing import MixingConfig, _candidates, open_mixing
from trainer.model import ModelConfig, build_classifier
from trainer.prefetch import InProcessMixing, RemoteMixing

QUICK_S = 1.0


def open_and_mix(config: MixingConfig, image_size: int = SIDE, batch_size: int = 4) -> type:
    """Open the mixing of a config, mix a batch, and say which kind it is."""
    classifier = build_classifier(ModelConfig(backbone=TINY_RESNET), NUM_CLASSES, seed=0)
    with open_mixing(
        config,
        seed=0,
        image_size=image_size,
        batch_size=batch_size,
        world=ALONE,
        metrics=TrainerMetrics(0),
        classifier=classifier,
    ) as mixing:
        assert len(list(mixing.epoch(0, [make_batch()]))) == 1
        return type(mixing)


def sentence_of(config: MixingConfig, image_size: int = SIDE, error: type[Exception] = ConfigError) -> str:
    with pytest.raises(error) as refusal:
        open_and_mix(config, image_size)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"depth": 0}, "mixing.depth must be at least 1, got 0"),
        ({"alpha": -1.0}, "mixing.alpha must be positive, or 0 for the policy's usual one, got -1.0"),
        ({"alpha": float("nan")}, "got nan"),
        ({"alpha": float("inf")}, "got inf"),
        ({"failure_budget": -1}, "mixing.failure_budget must be at least 0, got -1"),
        ({"deadline_s": 0.0}, "mixing.deadline_s must be a positive number of seconds, got 0.0"),
        ({"startup_timeout_s": -5.0}, "mixing.startup_timeout_s must be a positive number of seconds, got -5.0"),
        ({"max_bytes_in_flight": 0}, "mixing.max_bytes_in_flight must be at least 1, got 0"),
        ({"reply": "images", "encoding": "jpeg"}, "mixing.reply 'images' with mixing.encoding 'jpeg' would train"),
        ({"reply": "images", "encoding": "auto"}, "mixing.encoding 'auto' would train on decoded JPEGs"),
        ({"jpeg_quality": 0}, r"mixing.jpeg_quality must lie in 1\.\.100, got 0"),
        ({"encoder_size": -1}, "mixing.encoder_size must be at least 0, got -1; 0 sends whole images"),
        ({"encoder_size": 32, "reply": "auto"}, "mixing.encoder_size 32 with mixing.reply 'auto' would train on"),
        ({"shared_memory_mib": -1}, "mixing.shared_memory_mib must be at least 0, got -1"),
        ({"shared_memory_mib": 8}, "mixing.shared_memory_mib 8 needs a unix:/// endpoint, got 'localhost:8001'"),
        ({"policy": "local"}, "mixing.policy 'local' needs --mixing.artefact FILE.safetensors"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], sentence: str):
    """Settings that cannot work are refused with their value, before anything is opened."""
    with pytest.raises(ConfigError, match=sentence):
        MixingConfig(**settings)


@pytest.mark.parametrize(("policy", "alpha"), [("none", 1.0), ("mixup", 1.0), ("cutmix", 1.0), ("remote", 2.0)])
def test_usual_alpha(policy: Any, alpha: float):
    """Learned mixers draw lam from Beta(2, 2), the others from Beta(1, 1), unless a person says otherwise."""
    assert MixingConfig(policy=policy).resolved_alpha == alpha
    assert MixingConfig(policy=policy, alpha=0.3).resolved_alpha == 0.3


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_hand_crafted_policies(policy: Any):
    """Hand-crafted policies mix in this process."""
    assert open_and_mix(MixingConfig(policy=policy)) is InProcessMixing


def test_local_policy(artefact: Path):
    """Policy `local` runs the mixer of an artefact in this process."""
    assert open_and_mix(MixingConfig(policy="local", artefact=str(artefact))) is InProcessMixing


def test_remote_policy(server: MixerServer):
    """Policy `remote` uses the server at the endpoint."""
    assert open_and_mix(MixingConfig(endpoint=server.addresses["grpc"])) is RemoteMixing


def test_remote_policy_with_jpegs(server: MixerServer):
    """Encoding jpeg is used with a server that reads it."""
    metrics = TrainerMetrics(0)
    classifier = build_classifier(ModelConfig(backbone=TINY_RESNET), NUM_CLASSES, seed=0)
    config = MixingConfig(endpoint=server.addresses["grpc"], encoding="jpeg", jpeg_quality=50)
    images = make_batch(64)
    with open_mixing(
        config, seed=0, image_size=SIDE, batch_size=64, world=ALONE, metrics=metrics, classifier=classifier
    ) as mixing:
        list(mixing.epoch(0, [images]))

    raw_bytes = images.images.numel()
    assert 64 < metrics.value("mixer_client_sent_bytes_total") != raw_bytes
    assert metrics.value("mixer_client_fallback_total") == 0


def test_smaller_copies_for_the_mixer(server: MixerServer):
    """With an encoder size a quarter of the bytes goes up, and a size the mixer does not take is refused by name."""
    metrics = TrainerMetrics(0)
    classifier = build_classifier(ModelConfig(backbone=TINY_RESNET), NUM_CLASSES, seed=0)
    config = MixingConfig(endpoint=server.addresses["grpc"], encoder_size=SIDE // 2)
    batch = make_batch(64)
    with open_mixing(
        config, seed=0, image_size=SIDE, batch_size=64, world=ALONE, metrics=metrics, classifier=classifier
    ) as mixing:
        (item,) = mixing.epoch(0, [batch])

    assert item.mixed.images.shape == batch.images.shape
    assert metrics.value("mixer_client_sent_bytes_total") < batch.images.numel() / 2
    assert metrics.value("mixer_client_fallback_total") == 0
    assert "mixing.encoder_size is 4" in sentence_of(replace(config, encoder_size=4))


def test_pixels_through_shared_memory(tmp_path: Path):
    """With shared memory of the server at a unix socket the pixels of a rank do not travel."""
    if not is_supported():
        pytest.skip("this machine shares no memory")
    socket_path = tmp_path / "socket"
    with serve(tiny_mixer(), unix_socket=socket_path, shared_memory_mib=8) as server:
        config = MixingConfig(endpoint=f"unix://{socket_path}", shared_memory_mib=4)
        assert open_and_mix(config) is RemoteMixing
        num_received = sample(server, "mixer_received_bytes_total", method="MixStream")

    assert 0 < num_received < make_batch().images.numel() / 4


def test_no_server():
    """Where nobody listens, a run says so after the start-up time, with address, cause and cure."""
    sentence = sentence_of(MixingConfig(endpoint="127.0.0.1:1", startup_timeout_s=QUICK_S))

    assert sentence.startswith("no mixer was ready at 127.0.0.1:1 within 1 s (mixer at 127.0.0.1:1: ")
    assert sentence.endswith("start one with `samix serve`, or choose another --mixing.endpoint or --mixing.policy")


def test_silent_server():
    """A port that accepts connections and never answers is refused after the start-up time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        sentence = sentence_of(MixingConfig(endpoint=f"127.0.0.1:{silent.getsockname()[1]}", startup_timeout_s=QUICK_S))

    assert "within 1 s" in sentence


def test_another_grpc_server():
    """A gRPC server of another kind is not mistaken for a mixer that is not ready."""
    stranger = grpc.server(futures.ThreadPoolExecutor(1))
    port = stranger.add_insecure_port("127.0.0.1:0")
    stranger.start()

    sentence = sentence_of(MixingConfig(endpoint=f"127.0.0.1:{port}", startup_timeout_s=QUICK_S))

    stranger.stop(0).wait()
    assert sentence.startswith(f"what listens at 127.0.0.1:{port} is no mixer server (")


def test_another_mixer(server: MixerServer):
    """A name the server does not host is refused with the names it has."""
    sentence = sentence_of(MixingConfig(endpoint=server.addresses["grpc"], mixer="huge"))

    assert "huge" in sentence
    assert "tiny" in sentence
    assert sentence.endswith("; set --mixing.mixer")


@pytest.mark.parametrize("image_size", [7, 2000])
def test_image_size_outside_the_mixers_limits(server: MixerServer, image_size: int):
    """An image size the server's mixer does not take is refused with its limits."""
    sentence = sentence_of(MixingConfig(endpoint=server.addresses["grpc"]), image_size)

    assert "takes images of 8 to 1024 pixels" in sentence
    assert f"data.image_size is {image_size}; change it or choose another mixer" in sentence


def test_batches_beyond_the_servers_limit():
    """A rank's batch that the server would refuse is refused before the first step, with both numbers and cures."""
    with serve(tiny_mixer(), requests=RequestConfig(max_images=8)) as server:
        config = MixingConfig(endpoint=server.addresses["grpc"])
        with pytest.raises(ConfigError) as refusal:
            open_and_mix(config, batch_size=9)

        assert open_and_mix(config, batch_size=8) is RemoteMixing
    assert str(refusal.value).startswith("a rank's batch has 9 images, the server takes 8 in one request; make ")


@pytest.mark.parametrize("encoding", ["jpeg", "auto"])
def test_a_server_that_reads_no_jpegs(encoding: Any, caplog: pytest.LogCaptureFixture):
    """A server from before JPEGs is refused with encoding jpeg, and gets raw pixels with auto."""
    config = MixingConfig(encoding=encoding, reply="auto")
    old = pb.MixerInfo(name="tiny")

    if encoding == "jpeg":
        with pytest.raises(ConfigError, match="reads no JPEGs; upgrade it, or set"):
            _candidates(config, old, 0)
    else:
        assert _candidates(config, old, 0) == [Exchange(), Exchange(reply="images")]
        assert caplog.messages == ["mixer_reads_no_jpeg"]


def test_image_size_outside_the_local_mixers_limits(artefact: Path):
    """The same holds for policy `local`."""
    config = MixingConfig(policy="local", artefact=str(artefact))

    assert "8 to 1024" in sentence_of(config, 4, InputError)


@pytest.mark.parametrize("endpoint", ["", "localhost", "localhost:0", "http://localhost:8001"])
def test_no_address(endpoint: str):
    """Something that is no address is refused with the forms there are."""
    sentence = sentence_of(MixingConfig(endpoint=endpoint), error=InputError)

    assert sentence.endswith(f"a mixer's address is host:port, dns:///name:port or unix:///path, got {endpoint!r}")


def test_no_artefact(tmp_path: Path):
    """Policy `local` without its file is refused with the path."""
    config = MixingConfig(policy="local", artefact=str(tmp_path / "gone.safetensors"))

    assert "gone.safetensors" in sentence_of(config, error=ArtefactError)
