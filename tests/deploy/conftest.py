from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Site
from expressions import RULES, Labels, families_of, labels_of, promql, rules_of
from serving import serve, tiny_mixer

from mixer_server.app import MixerServer
from mixer_server.workers.worker_metrics import WorkerMetrics
from trainer.metrics import TrainerMetrics


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MixerServer]:
    socket = tmp_path_factory.mktemp("sockets") / "mixer"
    security = Site(tmp_path_factory.mktemp("site")).security(has_tokens=True, is_mutual=True)
    with serve(tiny_mixer(), unix_socket=socket, shared_memory_mib=1, security=security) as running:
        yield running


@pytest.fixture(scope="module")
def families(server: MixerServer) -> dict[str, Labels]:
    """Labels of every series that our programs, Prometheus itself and the recording rules make."""
    programs = [
        (server.metrics.registry, "samix-mixer"),
        (WorkerMetrics(1, dict).registry, "samix-mixer"),
        (TrainerMetrics(0).registry, "samix-trainer"),
    ]
    found: dict[str, Labels] = {
        "up": frozenset({"job", "instance", "run"}),
        "ALERTS": frozenset({"alertname", "alertstate", "severity"}),
    }
    for registry, job in programs:
        for name, labels in families_of(registry, job).items():
            found[name] = found.get(name, frozenset()) | labels  # both have processes
    recording: Path = RULES / "recording.yml"
    for rule in rules_of(recording):
        found[rule["record"]] = labels_of(promql.parse(rule["expr"]), found)
    return found
