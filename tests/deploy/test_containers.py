"""`make up` on a real engine: everything comes up healthy, a run finishes, and Prometheus sees all of it.

Without a registry, Debian's Prometheus and Alertmanager stand in (SAMIX_TEST_ONLINE=1 takes the official images, and
Grafana). SAMIX_TEST_NO_CACHE=1 builds from nothing, which takes minutes and 10 GB.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from expressions import DEPLOY, Question, panel_questions, rule_questions, selectors, without_thresholds
from prometheus_server import Prometheus
from stack import TAG, Stack, open_ports, running_stack, wait_for

IS_ONLINE = os.environ.get("SAMIX_TEST_ONLINE") == "1"
MIXER_PORTS = {8000, 8001, 8002}
DOCUMENTED_PORTS = {
    "mixer": MIXER_PORTS,
    "mixer-2": MIXER_PORTS,
    "trainer": {8010, 8011, *range(29_400, 30_000)},
    "prometheus": {9090},
    "alertmanager": {9093},
    "grafana": {3000},
}
NEVER_SEEN = {
    r"mixer_workers?_": "a server of one process has no workers",
    r"mixer_workers\b": "a server of one process has no workers",
    r"mixer_dataset_": "no dataset is served",
    r"mixer_model_loads_total{.*failed": "every mixer file can be loaded",
    r"mixer_shared_memory": "containers share no memory",
    r"mixer_(online|weights)_": "no mixer is trained on the server",
    r"mixer_client_weights_": "no mixer is trained on the server",
    r"mixer_gpu": "there is no GPU",
    r"mixer_certificate_expiry": "there are no certificates",
    r"mixer_security_file_stale": "there are no certificates, and no tokens",
    r"mixer_requests_total{.*code": "every call is answered OK",
    r"ALERTS": "nothing is wrong",
}
"""Why some series are not there, or stay at zero, by how their selectors begin."""

QUESTIONS = [*panel_questions(), *rule_questions("record"), *rule_questions("alert")]

pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("docker") is None, reason="needs docker"),
]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    files = ["compose.yaml"] if IS_ONLINE else ["compose.yaml", "compose.offline.yaml"]
    secrets = tmp_path_factory.mktemp("secrets")
    has_cache = os.environ.get("SAMIX_TEST_NO_CACHE") != "1"
    with running_stack("test", files, "cpu,replicas,monitoring", secrets, has_cache=has_cache) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(stack: Stack) -> Prometheus:
    """Prometheus when it has seen the run make steps and all rules are evaluated; the run goes on, or lingers."""
    watcher = Prometheus(stack.port("prometheus", 9090))
    wait_for(lambda: watcher.value("min(run_rank:mixer_client_wait:share_rate5m)") > 0)
    return watcher


def numbers(prometheus: Prometheus, expr: str) -> list[float]:
    return [value for series in prometheus.ask(expr) if not math.isnan(value := float(series["value"][1]))]


def test_every_container_is_healthy(stack: Stack):
    """What runs on is healthy; what makes the shards has ended well."""
    states = {service: stack.container(service)["State"] for service in stack.services()}
    shards = states.pop("digits")

    assert (shards["Status"], shards["ExitCode"]) == ("exited", 0)
    assert {service: state["Health"]["Status"] for service, state in states.items()} == dict.fromkeys(states, "healthy")
    assert {"mixer", "mixer-2", "trainer", "prometheus", "alertmanager"} <= states.keys()


def test_every_target_is_up_while_it_trains(stack: Stack, prometheus: Prometheus):
    """Prometheus finds both servers by their one name and both ranks by their list, and reads all of them."""
    wait_for(lambda: prometheus.value('count(up{job="samix-trainer"} == 1)') == 2)

    assert stack.container("trainer")["State"]["Status"] == "running"
    assert prometheus.value('count(up{job="samix-mixer"} == 1)') == 2
    assert prometheus.value("count(up == 0)") == 0


def test_only_documented_ports_are_open(stack: Stack, prometheus: Prometheus):
    """A scan of every TCP port of every container, while it trains, finds what docs/deploy.md lists."""
    services = [service for service in stack.services() if service != "digits"]
    found = {
        service: set().union(*(open_ports(address) for address in stack.addresses(service))) for service in services
    }

    print("open:", {service: sorted(ports) for service, ports in found.items()})
    assert all(found.values())
    undocumented = {service: ports - DOCUMENTED_PORTS[service] for service, ports in found.items()}
    assert not any(undocumented.values()), undocumented


def test_every_question_is_answered(prometheus: Prometheus):
    """Each expression of a panel, rule or alert (without its threshold) answers a number, or there is a reason."""
    unanswered = {
        question: why_silent(prometheus, question) for question in QUESTIONS if is_silent(prometheus, question)
    }

    for question, reason in unanswered.items():
        print(f"no answer: {question}: {reason}")
    print(
        f"{len(QUESTIONS)} asked, {len(QUESTIONS) - len(unanswered)} answered, {len(unanswered)} with a reason not to"
    )
    assert all(unanswered.values()), [str(question) for question, reason in unanswered.items() if not reason]
    assert prometheus.failed_rules() == []


def is_silent(prometheus: Prometheus, question: Question) -> bool:
    if numbers(prometheus, question.expr):
        return False
    return not numbers(prometheus, without_thresholds(question.expr))


def why_silent(prometheus: Prometheus, question: Question) -> str:
    """Find a series that was never seen, or counted nothing, and why; an empty text if there is none."""
    for selector in selectors(question.expr):
        asked = re.sub(r" offset \w+$", "", str(selector))
        reasons = [reason for start, reason in NEVER_SEEN.items() if re.match(start, asked)]
        if reasons and not any(numbers(prometheus, f"last_over_time({asked}[1h])")):
            return f"{asked}: {reasons[0]}"
    return ""


def test_no_alert_fires(prometheus: Prometheus):
    """Where all is well, nobody is called."""
    assert prometheus.ask('ALERTS{alertstate="firing"}') == []


def test_the_run_finishes(stack: Stack, prometheus: Prometheus):
    """It learns the digits, by mixes of the servers, and its container ends with 0."""
    wait_for(lambda: stack.container("trainer")["State"]["Status"] == "exited")

    assert stack.container("trainer")["State"]["ExitCode"] == 0
    assert stack.container("trainer")["RestartCount"] == 0
    summary = json.loads(
        stack.compose("run", "--rm", "--no-deps", "--entrypoint", "cat", "trainer", "/runs/train/summary.json")
    )
    print({name: summary[name] for name in ("top1", "steps", "fallbacks", "wait_share", "seconds")})
    assert summary["top1"] > 0.9
    assert summary["fallbacks"] == 0


def test_images_are_light(stack: Stack):
    """At most 150 MB of the server's and the trainer's image are ours."""
    images = [f"samix/{name}:{TAG}" for name in ("mixer", "trainer")]

    weighed = subprocess.run([sys.executable, DEPLOY / "image_sizes.py", *images], capture_output=True, text=True)

    print(weighed.stdout)
    assert weighed.returncode == 0, weighed.stderr


@pytest.mark.parametrize("name", ["mixer", "trainer"])
def test_images_hold_no_compiler(stack: Stack, name: str):
    """Nobody can build a program in them."""
    script = "for tool in cc gcc g++ clang tcc ld as make; do command -v $tool; done; true"

    assert stack.compose("run", "--rm", "--no-deps", "--entrypoint", "sh", name, "-c", script).strip() == ""


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("mixer", ["matplotlib", "sklearn", "scipy", "trainer", "benchmarks", "pytest"]),
        ("trainer", ["grpc_health", "grpc_reflection", "mixer_server", "benchmarks", "sklearn", "pytest"]),
    ],
)
def test_images_hold_what_they_need(stack: Stack, name: str, absent: list[str]):
    """Neither program's image has the other's packages."""
    script = f"from importlib.util import find_spec; print([name for name in {absent} if find_spec(name)])"

    found = stack.compose("run", "--rm", "--no-deps", "--entrypoint", "python", name, "-c", script)

    assert found.strip() == "[]"
