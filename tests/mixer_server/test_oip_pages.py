"""The Open Inference Protocol over HTTP: health and descriptions."""

import json
from pathlib import Path

import pytest
from child_server import child_server
from serving import serve, serve_folder, tiny_mixer
from test_pages import fetch

from mixer_server.app import MixerServer
from mixer_server.oip.catalogue import Catalogue
from mixer_server.oip.pages import answer_path
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer


def fetch_json(server: MixerServer, path: str) -> tuple[int, dict]:
    status, body = fetch(server.addresses["http"], path)
    return status, json.loads(body)


@pytest.mark.parametrize("path", ["/v2", "/v2/", "/v2?x=1"])
def test_a_server_describes_itself(server: MixerServer, path: str):
    """The root tells name and version, and no extension: over HTTP none is spoken."""
    status, content = fetch_json(server, path)

    assert status == 200
    assert content["name"] == "samix-service"
    assert content["extensions"] == []


def test_health(server: MixerServer, mixer: FrozenMixer):
    """A server that has started is live and ready, as are its models."""
    paths = ("/v2/health/ready", "/v2/models/tiny/ready", f"/v2/models/tiny/versions/{mixer.version}/ready")

    assert fetch_json(server, "/v2/health/live") == (200, {"live": True})
    assert [fetch_json(server, path) for path in paths] == [(200, {"ready": True})] * 3


def test_a_model_describes_its_tensors(server: MixerServer, mixer: FrozenMixer):
    """A model is described the same with and without its version, numbers as numbers."""
    status, model = fetch_json(server, "/v2/models/tiny")

    assert status == 200
    assert (model["name"], model["versions"], model["platform"]) == ("tiny", [mixer.version], "samix")
    assert {"name": "images", "datatype": "UINT8", "shape": [-1, 3, -1, -1]} in model["inputs"]
    assert {"name": "mask_logits", "datatype": "FP16", "shape": [-1, 1, -1, -1]} in model["outputs"]
    assert model["properties"]["sha256"] == mixer.sha256
    assert fetch_json(server, f"/v2/models/tiny/versions/{mixer.version}") == (200, model)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/v2/models/ghost", "no mixer is called 'ghost' here; this server hosts 'tiny'"),
        ("/v2/models/ghost/ready", "no mixer is called 'ghost'"),
        ("/v2/models/tiny/versions/0000", "not '0000'"),
        ("/v2/models/tiny/versions/0000/ready", "not '0000'"),
        ("/v2/models/%3Cx%3E", "no mixer is called '<x>'"),
        ("/v2/models", "no page '/v2/models' here; there are /v2, /v2/health/live"),
        ("/v2/models/tiny/infer/x", "no page '/v2/models/tiny/infer/x'"),
        ("/v2/unknown", "no page '/v2/unknown'"),
    ],
)
def test_what_is_not_there(server: MixerServer, path: str, sentence: str):
    """Unknown models, versions and pages are not found, with the protocol's error object."""
    status, content = fetch_json(server, path)

    assert status == 404
    assert sentence in content["error"]


def test_names_are_decoded():
    """A model's name may need escapes in a path."""
    with serve(tiny_mixer("a mixer/ä")) as server:
        status, model = fetch_json(server, "/v2/models/a%20mixer%2F%C3%A4")

    assert status == 200
    assert model["name"] == "a mixer/ä"


def test_a_server_that_goes_away_is_not_ready(mixer: FrozenMixer):
    """Once it drains, neither the server nor a model is ready, and it is still live."""
    with serve(mixer) as server:
        catalogue = Catalogue(server.registry, server.readiness, 1)
        server.stop()

    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready")
    assert [answer_path(catalogue, path).status for path in paths] == [200, 503, 503]


def test_an_empty_server(tmp_path: Path):
    """A server that hosts nothing yet is ready, and says that there is no such model."""
    with serve_folder(tmp_path, model_control="poll") as server:
        assert fetch_json(server, "/v2/health/ready") == (200, {"ready": True})
        status, content = fetch_json(server, "/v2/models/tiny")

    assert status == 404
    assert "hosts no mixer now" in content["error"]


@pytest.mark.slow
def test_several_workers(tmp_path: Path):
    """The parent of several workers answers for all whether they are ready, and as one of them what they host."""
    path = tmp_path / "tiny.safetensors"
    save_artefact(path, tiny_mixer(), {})
    with child_server(tmp_path, "--mixers", str(path), "--workers", "2") as running:
        address = running.addresses["http"]
        answers = [fetch(address, f"/v2{end}") for end in ("/health/live", "/health/ready", "/models/tiny", "/x")]

    assert [status for status, _ in answers] == [200, 200, 200, 404]
    assert json.loads(answers[2][1])["name"] == "tiny"
