"""A real Prometheus looks at a real mixer server and a real training run: every expression answers."""

import math
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from certificates import Site
from expressions import Question, panel_questions, rule_questions, without_thresholds
from prometheus_client import generate_latest
from prometheus_server import Prometheus, running_prometheus
from serving import WAIT_S, Gate, serve, serve_folder, tiny_mixer, wait_until
from shard_making import write_noise_shards
from training import write_pictures

from mixer_server.app import MixerServer
from mixer_server.datasets.config import DatasetsConfig
from mixer_server.workers.worker_metrics import WorkerMetrics
from samix import connect
from samix.errors import MixerNotFound, NotAuthenticated
from samix.mixing.artefact import save_artefact
from services.metrics import serve_metrics

RUN_S = 100.0
"""Longest that a short training run takes on a busy machine."""

EPOCHS = 4

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3 * RUN_S),
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Prometheus: apt install prometheus"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def watched_server(folder: Path) -> Iterator[MixerServer]:
    """A server that has everything that can be watched: a damaged mixer file, a dataset, shared memory."""
    mixers = folder / "mixers"
    mixers.mkdir()
    save_artefact(mixers / "tiny.safetensors", tiny_mixer(), {"data": "none"})
    (mixers / "damaged.safetensors").write_bytes(b"no weights")
    with serve_folder(
        mixers,
        model_control="poll",
        dataset=(f"noise={write_noise_shards(folder, [40])}",),
        datasets=DatasetsConfig(num_workers=1),
        unix_socket=folder / "mixer.sock",
        shared_memory_mib=1,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def guarded_server(folder: Path) -> Iterator[MixerServer]:
    """A server with certificates and tokens, which has refused somebody without."""
    site = Site(folder / "site")
    with serve(tiny_mixer(), security=site.security(has_tokens=True)) as running:
        with (
            connect(running.addresses["grpc"], tls_ca=site.ca) as client,
            pytest.raises(NotAuthenticated),
        ):
            client.list_mixers()
        yield running


@pytest.fixture(scope="module")
def prometheus(folder: Path, watched_server: MixerServer, guarded_server: MixerServer) -> Iterator[Prometheus]:
    """A Prometheus that has seen a whole training run, clients of other kinds, and whose run still has its page."""
    gate = Gate(watched_server.registry.mixers[0])
    gate.shut()  # until Prometheus has found the run, which is over in two seconds: rates must see it step
    servers = (watched_server, guarded_server)
    workers = WorkerMetrics(
        2, lambda: {index: generate_latest(server.metrics.registry).decode() for index, server in enumerate(servers)}
    )
    with (
        closing(serve_metrics(workers.registry, "127.0.0.1", 0)) as page,
        running_prometheus(folder, [watched_server.addresses["metrics"], f"127.0.0.1:{page.port}"]) as running,
        training(folder, watched_server) as process,
    ):
        wait_for_run(process, lambda: running.value('up{job="samix-trainer"}'))
        gate.open()
        wait_for_run(process, lambda: use_in_other_ways(watched_server) or running.value("trainer_epoch") == EPOCHS)
        wait_for_run(process, lambda: running.value("run_rank:mixer_client_wait:share_rate5m") > 0)
        yield running


@contextmanager
def training(folder: Path, server: MixerServer) -> Iterator[subprocess.Popen]:
    """Train in the folder that Prometheus is told of; the pages stay until the block ends."""
    data = ["--data.train", write_pictures(folder / "train.tar", 200)]
    data += ["--data.val", write_pictures(folder / "val.tar", 30)]
    flags = ["--mixing.endpoint", server.addresses["grpc"], "--metrics.port", "0", "--epochs", str(EPOCHS)]
    flags += ["--mixing.deadline-s", str(RUN_S)]
    command = [sys.executable, "-m", "trainer", "digits_cpu", "--device", "cpu", *data, *flags]
    with (folder / "trainer.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--log-every", "1", "--out", str(folder / "runs/train")], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)  # it only lingers
        assert process.wait(WAIT_S) == 0, (folder / "trainer.log").read_text()
    finally:
        process.kill()
        process.wait(WAIT_S)


def use_in_other_ways(server: MixerServer) -> None:
    """Mix a batch by itself, ask for a mixer that there is not, and take an epoch of the dataset."""
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with connect(server.addresses["grpc"], mixer="tiny", reply="images") as client:
        client.mix(images, seed=0)
        with client.subscribe("noise", batch_size=8, image_size=32, seed=0, epoch=0) as batches:
            assert sum(1 for _ in batches) == 5
    with connect(server.addresses["grpc"], mixer="ghost") as client, pytest.raises(MixerNotFound):
        client.mix(images, seed=0)


def wait_for_run(process: subprocess.Popen, is_so: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + RUN_S
    while not is_so():
        assert process.poll() is None, f"the run ended with {process.returncode}"
        assert time.monotonic() < deadline_s, "it did not come to that"
        threading.Event().wait(0.5)


def numbers(prometheus: Prometheus, expr: str) -> list[float]:
    """Evaluate an expression; leaves out what is not a number."""
    values = (float(series["value"][1]) for series in prometheus.ask(expr))
    return [value for value in values if not math.isnan(value)]


def test_every_target_is_up(prometheus: Prometheus):
    """Servers and the run, which is done and keeps its page for a minute, are found and answer."""
    assert prometheus.health_of_targets() == {"samix-mixer": "up", "samix-trainer": "up"}
    assert prometheus.value('sum(up{job="samix-mixer"})') == 2
    assert prometheus.value('up{job="samix-trainer", run="train"}') == 1


def test_no_rule_fails(prometheus: Prometheus):
    """All rules can be evaluated."""
    assert prometheus.failed_rules() == []


@pytest.mark.parametrize("question", [*panel_questions(), *rule_questions("record")], ids=str)
def test_answers(prometheus: Prometheus, question: Question):
    """A panel, or a recording rule, answers a number."""
    wait_until(lambda: numbers(prometheus, question.expr))


@pytest.mark.parametrize("question", [*rule_questions("alert")], ids=str)
def test_watches(prometheus: Prometheus, question: Question):
    """An alert has something to watch: without its thresholds it answers a number, wherever all is well."""
    wait_until(lambda: numbers(prometheus, without_thresholds(question.expr)))


def test_what_is_wrong_is_told(prometheus: Prometheus):
    """Of all alerts the one about the damaged file is firing, and no other."""
    firing = {series["metric"]["alertname"] for series in prometheus.ask('ALERTS{alertstate="firing"}')}

    assert firing == {"MixerLoadFailed"}
