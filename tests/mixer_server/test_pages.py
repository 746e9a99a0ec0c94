import http.client
import shutil
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2
from prometheus_client.parser import text_string_to_metric_families
from serving import WAIT_S, Gate, ask, connect, health_of, random_call, request, serve, serve_folder, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.front.readiness import SERVICE, Readiness
from samix.errors import MixerUnavailable
from samix.mixing.artefact import save_artefact
from samix.mixing.frozen import FrozenMixer


def fetch(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=WAIT_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(page: str) -> dict[tuple[str, frozenset], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def version_cell(mixer: FrozenMixer) -> str:
    return f'data-label="Version">{mixer.version}</td><td role="cell" data-label="State">'


def test_ready_server(server: MixerServer):
    """A server that has started is alive, ready, and shows its mixers on its status page."""
    address = server.addresses["http"]

    assert fetch(address, "/livez") == (200, "ok\n")
    assert fetch(address, "/readyz") == (200, "ok\n")
    status, page = fetch(address, "/")
    assert status == 200
    assert server.registry.mixers[0].version in page


def test_mixer_names_cannot_inject_html():
    """A mixer's name is text on the status page, whatever it holds."""
    with serve(tiny_mixer("<script>x</script>")) as server:
        _, page = fetch(server.addresses["http"], "/")

    assert "&lt;script&gt;x&lt;/script&gt;" in page
    assert "<script>x" not in page


def test_draining_server(gated: tuple[FrozenMixer, Gate]):
    """While it drains, a server is alive, not ready and says why, and still answers what it has accepted."""
    mixer, gate = gated
    with serve(mixer) as server, connect(server.addresses["grpc"]) as stub, ThreadPoolExecutor(2) as pool:
        gate.shut()
        accepted = pool.submit(ask, stub, random_call())
        gate.wait_until_held()
        stopped = pool.submit(server.stop)
        # Draining begins on another thread; closing the batcher, which comes after it, wakes its waiters.
        with server.batcher._changed:
            assert server.batcher._changed.wait_for(lambda: server.batcher._is_closed, WAIT_S)

        ready = fetch(server.addresses["http"], "/readyz")
        alive = fetch(server.addresses["http"], "/livez")
        gate.open()

        assert ready == (503, "server is shutting down\n")
        assert alive == (200, "ok\n")
        assert accepted.result().mixer == "tiny"
        assert stopped.result() is True


def test_readiness_comes_mixer_by_mixer():
    """Each mixer is served once it is warm, the server once all are; nothing is served any more while it drains."""
    readiness = Readiness()
    assert readiness.obstacle == "starting"
    readiness.expect("one", "a")
    readiness.expect("two", "b")

    readiness.set_ready("two", "b")

    assert readiness.obstacle == "warming up one"
    assert readiness.is_ready("two")
    readiness.check("two")
    with pytest.raises(MixerUnavailable, match="'one' is warming up"):
        readiness.check("one")
    readiness.set_ready("one", "a")
    readiness.open()
    assert readiness.obstacle is None
    readiness.drain()
    assert readiness.obstacle == "server is shutting down"
    with pytest.raises(MixerUnavailable, match="server is shutting down"):
        readiness.check("one")


def test_readiness_of_versions():
    """A name is served as long as one of its versions is warm; a version that is named must be warm itself."""
    readiness = Readiness()
    readiness.expect("one", "a")
    readiness.set_ready("one", "a")
    readiness.open()

    readiness.expect("one", "b")

    assert readiness.obstacle is None
    readiness.check("one")
    readiness.check("one", "a")
    with pytest.raises(MixerUnavailable, match="'one' is warming up"):
        readiness.check("one", "b")
    readiness.set_ready("one", "b")
    readiness.forget("one", "a")
    assert readiness.is_ready("one")
    assert not readiness.is_ready("one", "a")
    readiness.forget("one", "b")
    assert not readiness.is_ready("one")
    readiness.check("one")  # it is the registry that says what is not there


def test_status_page_of_versions(tmp_path: Path):
    """The status page shows all versions, files that could not be loaded with the reason, and those that are not."""
    old, new = tiny_mixer(seed=1), tiny_mixer(seed=2)
    save_artefact(tmp_path / "tiny.safetensors", old, {})
    with serve_folder(tmp_path, model_control="poll") as server:
        save_artefact(tmp_path / "tiny.safetensors", new, {})
        (tmp_path / "noise.safetensors").write_text("<noise>")
        server.repository.scan()
        _, page = fetch(server.addresses["http"], "/")

    assert f"{version_cell(new)}ready</td>" in page
    assert f"{version_cell(old)}ready, for requests that name it</td>" in page
    assert ">Not served</h2>" in page
    assert '>noise</th><td role="cell" data-label="State">failed</td>' in page
    assert "noise.safetensors is not a whole safetensors file" in page


def test_status_page_of_an_empty_server(tmp_path: Path):
    """A server that polls an empty folder is ready and shows no mixer."""
    with serve_folder(tmp_path, model_control="poll") as server:
        assert fetch(server.addresses["http"], "/readyz") == (200, "ok\n")
        status, page = fetch(server.addresses["http"], "/")

    assert status == 200
    assert "Not served" not in page


def test_health_follows_the_mixers(tmp_path: Path):
    """A watcher of a mixer sees it come and go, and a check then finds nothing."""
    file = tmp_path / "tiny.safetensors"
    name = health_pb2.HealthCheckRequest(service="model/tiny")
    statuses = []
    with (
        serve_folder(tmp_path, model_control="poll") as server,
        grpc.insecure_channel(server.addresses["grpc"]) as channel,
    ):
        watch = health_of(channel).Watch(name, timeout=WAIT_S)
        statuses.append(next(watch).status)
        save_artefact(file, tiny_mixer(), {})
        server.repository.scan()
        statuses += [next(watch).status, next(watch).status]
        file.unlink()
        server.repository.scan()
        statuses.append(next(watch).status)
        with pytest.raises(grpc.RpcError) as caught:
            health_of(channel).Check(name, timeout=WAIT_S)
        whole = health_of(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status

    states = health_pb2.HealthCheckResponse
    assert statuses == [states.SERVICE_UNKNOWN, states.NOT_SERVING, states.SERVING, states.SERVICE_UNKNOWN]
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]
    assert whole == states.SERVING


def test_health_has_a_name_for_each_mixer(server: MixerServer):
    """The standard health check knows the server, the service and each mixer, and nothing else."""
    with grpc.insecure_channel(server.addresses["grpc"]) as channel:
        stub = health_of(channel)
        statuses = [
            stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status
            for name in ("", SERVICE, "model/tiny")
        ]
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="model/ghost"), timeout=WAIT_S)

    assert statuses == [health_pb2.HealthCheckResponse.SERVING] * 3
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # pyright: ignore[reportAttributeAccessIssue]


def test_metrics_agree_with_the_work(mixer: FrozenMixer):
    """Counters count what was done, warm-up excluded, and bytes are those of the messages."""
    message = request()
    with serve(mixer) as server, connect(server.addresses["grpc"]) as stub:
        replies = [stub.Mix(message, timeout=WAIT_S) for _ in range(3)]
        ask(stub, random_call(2, wants_images=True))
        values = samples(fetch(server.addresses["metrics"], "/metrics")[1])

    model = {"model": "tiny", "version": mixer.version}

    def value(name: str, **labels: str) -> float:
        return values[name, frozenset(labels.items())]

    assert value("mixer_requests_total", **model, method="Mix", code="OK") == 4
    assert value("mixer_images_total", **model, mode="mask_logits") == 12
    assert value("mixer_images_total", **model, mode="images") == 2
    assert value("mixer_batches_total", **model) == 4
    assert value("mixer_batch_size_images_sum") == 14
    assert value("mixer_received_bytes_total", method="Mix") > 3 * len(message.SerializeToString())
    assert value("mixer_sent_bytes_total", method="Mix") > 3 * len(replies[0].SerializeToString())
    assert value("mixer_requests_in_flight") == 0
    assert value("mixer_queue_images") == value("mixer_queue_requests") == 0
    assert value("mixer_mask_lambda_error_ratio_count", model="tiny") == 4
    assert value("mixer_model_ready", model="tiny") == 1
    for stage in ("decode", "queue", "compute", "encode"):
        assert value("mixer_stage_duration_seconds_count", stage=stage) == 4


def test_promtool_accepts_the_metrics(server: MixerServer):
    """Prometheus' own linter has no complaint about the metrics page."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    _, page = fetch(server.addresses["metrics"], "/metrics")

    lint = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True, timeout=WAIT_S)

    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


def test_other_http_methods_are_refused(server: MixerServer):
    """The pages can be read only."""
    host, port = server.addresses["http"].split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_S)

    connection.request("POST", "/livez", body="x")
    status = connection.getresponse().status
    connection.close()

    assert status == 501


def test_metrics_know_only_what_is_hosted(tmp_path: Path):
    """The series of an unloaded version are dropped, also those that an answer on its way makes anew; counts go on."""
    mixers = [tiny_mixer(seed=seed) for seed in range(3)]
    seen = []
    with (
        serve_folder(tmp_path, model_control="poll", keep_versions=1) as server,
        connect(server.addresses["grpc"]) as stub,
    ):
        for mixer in mixers:
            save_artefact(tmp_path / "tiny.safetensors", mixer, {})
            server.repository.scan()
            ask(stub, random_call())
            values = samples(fetch(server.addresses["metrics"], "/metrics")[1])
            seen.append({dict(labels)["version"] for name, labels in values if name == "mixer_images_total"})
            server.metrics.images.labels("tiny", mixers[0].version, "images").inc()
        (tmp_path / "tiny.safetensors").unlink()
        server.repository.scan()
        values = samples(fetch(server.addresses["metrics"], "/metrics")[1])

    assert seen == [{mixer.version} for mixer in mixers]
    assert {dict(labels).get("model", "unknown") for _, labels in values} == {"unknown"}
