"""What the compose files promise, as far as reading them tells; tests/deploy/test_containers.py starts them."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_files import BASE, OVERRIDES, compose_file, services_in, text_of, variables
from expressions import DEPLOY

from mixer_server.config import ServerConfig
from services.environment import inherited_args, variable_prefix
from trainer.config import TrainConfig

ROOT = DEPLOY.parent
ONE_SHOT = {"digits"}
OURS = ("digits", "mixer", "mixer-2", "mixer-gpu", "trainer", "trainer-gpu")
ALL = sorted(services_in())
SERVERS = [name for name in ALL if name not in ONE_SHOT]
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET|_KEY|CREDENTIAL", re.IGNORECASE)


@pytest.mark.parametrize("name", ALL)
def test_container_has_no_rights_that_it_does_not_need(name: str):
    """Root file system read-only, no capabilities, no new privileges, a user that is not root."""
    service = services_in()[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])


@pytest.mark.parametrize("name", ALL)
def test_container_is_bounded(name: str):
    """Memory, processes and logs have an end, and somebody reaps orphans."""
    service = services_in()[name]

    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["init"] is True


@pytest.mark.parametrize("name", SERVERS)
def test_server_is_watched_and_started_again(name: str):
    """What runs on has a health check with a deadline, and a policy for its end."""
    service = services_in()[name]

    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"interval", "timeout", "start_period"} <= service["healthcheck"].keys()
    assert service["restart"] in {"unless-stopped", "on-failure:5"}


@pytest.mark.parametrize("name", ["mixer", "mixer-2", "mixer-gpu"])
def test_a_mixer_is_asked_by_samix_health_and_given_time_to_drain(name: str):
    """Docker kills a server only after its own exit timeout is over."""
    service = services_in()[name]
    timeout_s = float(service["command"][service["command"].index("--exit-timeout-s") + 1])

    assert service["healthcheck"]["test"][1:3] == ["samix", "health"]
    assert float(service["stop_grace_period"].removesuffix("s")) > timeout_s


@pytest.mark.parametrize("name", ["mixer", "trainer"])
def test_ranks_and_workers_have_shared_memory(name: str):
    """More than docker's 64 MB."""
    assert services_in()[name]["shm_size"] in {"256m", "2g"}


def test_profiles():
    """The profiles of the documentation are all there are; one server and one run belong to each kind of device."""
    by_profile: dict[str, set[str]] = {}
    for name, service in services_in().items():
        for profile in service["profiles"]:
            by_profile.setdefault(profile, set()).add(name)

    assert by_profile == {
        "cpu": {"digits", "mixer", "trainer"},
        "gpu": {"mixer-gpu", "trainer-gpu"},
        "digits": {"digits"},
        "replicas": {"mixer-2"},
        "monitoring": {"prometheus", "alertmanager", "grafana"},
    }


def test_replicas_share_one_name():
    """All servers answer to the name that runs and Prometheus ask."""
    prometheus = yaml.safe_load(text_of("prometheus/compose.yml"))
    trainer = services_in()["trainer"]["environment"]

    for name in ("mixer", "mixer-2", "mixer-gpu"):
        assert all(network["aliases"] == ["mixers"] for network in services_in()[name]["networks"].values())
    assert trainer["SAMIX_TRAIN_MIXING_ENDPOINT"] == "mixers:8001"
    assert prometheus["scrape_configs"][0]["dns_sd_configs"][0]["names"] == ["mixers"]


def test_ports_are_published_on_this_machine_alone():
    """By default nobody else reaches a port, and only those of the documentation are published."""
    published = [port.split(":") for service in services_in().values() for port in service.get("ports", [])]
    documented = (ROOT / "docs/deploy.md").read_text()

    assert {address for address, _, _ in published} == {"127.0.0.1"}
    assert {outer for _, outer, _ in published} == {"8000", "8001", "8002", "9090", "9093", "3000"}
    for _, _, inner in published:
        assert re.search(rf"\|[^|\n]*\b{inner}\b", documented)


def test_metrics_stay_inside():
    """The network over which pages are scraped leads nowhere else."""
    networks = compose_file(BASE)["networks"]

    assert networks["scraping"] == {"internal": True}
    for name in ("mixer", "trainer", "prometheus"):
        assert "scraping" in services_in()[name]["networks"]


@pytest.mark.parametrize("file", [BASE, *OVERRIDES])
def test_no_secret_stands_in_a_file(file: str):
    """Whatever sounds like a secret is the path of a file."""
    settings = {
        name: value
        for service in services_in(file).values()
        for name, value in service.get("environment", {}).items()
        if SECRET.search(name)
    }

    assert all(value.startswith("/run/secrets/") for value in settings.values()), settings


@pytest.mark.parametrize("name", ALL)
def test_images_are_pinned(name: str):
    """No image is what happens to be the newest."""
    image = services_in()[name]["image"]

    assert re.search(r":[\w.-]+$", image)
    assert not image.endswith(":latest")
    assert "build" in services_in()[name] or re.search(r":v?\d+\.\d+\.\d+$", image)


@pytest.mark.parametrize(("program", "config"), [("serve", ServerConfig), ("train", TrainConfig)])
def test_variables_of_programs_exist(program: str, config: type):
    """Every SAMIX_SERVE_ and SAMIX_TRAIN_ variable of the files fits a flag."""
    environment = {
        name: value
        for file in (BASE, *OVERRIDES)
        for service in services_in(file).values()
        for name, value in service.get("environment", {}).items()
    }

    inherited = inherited_args(config, variable_prefix(program), environment)

    assert inherited


def test_every_knob_is_explained():
    """.env.example names each variable of the files with the value it has anyway, and none besides."""
    lines = re.findall(r"^#([A-Z_]+)=(.*)$", text_of(".env.example"), re.MULTILINE)
    explained = dict(lines)

    assert len(explained) == len(lines)
    assert explained.pop("COMPOSE_PROFILES") == "cpu"
    assert explained.pop("COMPOSE_FILE") == BASE
    assert explained == variables()


def test_offline_leaves_out_what_debian_does_not_have():
    """Without a registry nothing but the base of the images is needed."""
    offline = services_in("compose.offline.yaml")
    foreign = {name for name, service in services_in().items() if "build" not in service}

    assert foreign == offline.keys()
    assert {name for name in offline if "build" in offline[name]} == {"prometheus", "alertmanager"}
    assert not set(offline["grafana"]["profiles"]) & {"cpu", "gpu", "monitoring", "replicas"}


def test_tls_reaches_every_program():
    """Servers, runs and Prometheus all get certificates, from folders, in which a renewed file is seen."""
    secured = services_in("compose.tls.yaml")

    assert secured.keys() == {"mixer", "mixer-2", "mixer-gpu", "trainer", "trainer-gpu", "prometheus"}
    for service in secured.values():
        assert any(volume.endswith(":/run/secrets:ro") for volume in service["volumes"])


def test_images_hold_no_secret_and_no_run():
    """What docker is sent to build from is a list of what images need."""
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}

    assert ignored[1] == "*"
    assert not allowed & {".", "deploy", "runs", ".git", "deploy/secrets", "tests"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt install prometheus")
@pytest.mark.parametrize("name", ["compose.yml", "compose.tls.yml"])
def test_promtool_accepts_what_containers_use(tmp_path: Path, name: str):
    """Prometheus's configuration in containers is valid, given its secrets."""
    shutil.copytree(DEPLOY / "prometheus", tmp_path / "prometheus")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for file in ("ca.pem", "client.pem", "client.key", "token"):
        (secrets / file).write_text("")
    config = tmp_path / "prometheus" / name
    config.write_text(config.read_text().replace("/run/secrets", str(secrets)))

    check = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", config], capture_output=True, text=True, check=False
    )

    assert check.returncode == 0, check.stdout + check.stderr


def test_without_docker_the_cure_is_named(tmp_path: Path):
    """`make up` on a machine without docker says what to install, and what does without."""
    for tool in ("bash", "env", "dirname", "make"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)

    run = _compose(["up"], PATH=str(tmp_path))

    assert run.returncode == 1
    assert "docker is not installed; see https://" in run.stderr
    assert "make serve-local" in run.stderr


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ("exit 1", "no compose plugin"),
        ("echo 2.20.3", "docker compose 2.20.3 is too old; 2.24.4 or newer is needed"),
        ('if [ "$1" = compose ]; then echo v2.26.1; else exit 1; fi', "the Docker engine does not answer"),
    ],
)
def test_an_unfit_docker_is_named(tmp_path: Path, answers: str, sentence: str):
    """What is there but does not do is told apart: no compose, an old one, no engine."""
    docker = tmp_path / "docker"
    docker.write_text(f"#!/bin/sh\n{answers}\n")
    docker.chmod(0o755)

    run = _compose(["up"], PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert run.returncode == 1
    assert sentence in run.stderr


def test_an_unknown_word_is_answered_with_the_usage():
    """compose.sh knows what make asks of it, and says so."""
    run = _compose(["sideways"])

    assert run.returncode == 2
    assert run.stderr.startswith("usage: ")


def _compose(words: list[str], **environ: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEPLOY / "compose.sh", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environ,
        timeout=20,
    )
