"""The manifests for Kubernetes are whole, valid, and say what the programs understand."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from kubernetes_objects import (
    ENTRANCES,
    FOLDER,
    OPERATOR,
    Object,
    container,
    containers_of,
    kustomizations,
    labels_of,
    matches,
    mixer,
    named,
    objects_of,
    of_kind,
    pod_of,
    probes_of,
    rendered,
    settings_of,
    trainer,
    workloads,
)
from torch.distributed.run import get_args_parser

from mixer_server.config import ServerConfig
from samix.client.channel import check_targets
from services.config import parse_config, parse_recipe
from trainer.config import TrainConfig
from trainer.metrics import MetricsConfig
from trainer.recipes import RECIPES

VERSIONS = ("1.30", "1.33", "1.37")
"""Of Kubernetes, whose schemas count."""
CLIENT_VARIABLES = {"SAMIX_TLS_CA", "SAMIX_TLS_CERT", "SAMIX_TLS_KEY", "SAMIX_TOKEN_FILE"}


@pytest.fixture(params=ENTRANCES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """All that one entrance applies."""
    return rendered(request.param)


def server_config(objects: list[Object]) -> ServerConfig:
    settings = settings_of(objects, mixer(objects))
    return parse_config(ServerConfig, "serve", container(mixer(objects))["args"][1:], environ=settings)


def train_config(objects: list[Object]) -> tuple[Any, TrainConfig]:
    """Read what torchrun is told, and what it tells the ranks."""
    settings = settings_of(objects, trainer(objects))
    launch = get_args_parser().parse_args(container(trainer(objects))["args"])
    flags = {name: value for name, value in settings.items() if name not in CLIENT_VARIABLES}
    assert launch.training_script == "trainer"
    return launch, parse_recipe(RECIPES, "train", launch.training_script_args, environ=flags)[1]


@pytest.mark.parametrize("path", kustomizations(), ids=lambda path: path.parent.name)
def test_files_of_a_kustomization_exist(path: Path):
    """Whatever a kustomization names is there, also without kustomize at hand."""
    content = yaml.safe_load(path.read_text())

    places = [*content.get("resources", []), *content.get("components", [])]
    places += [patch["path"] for patch in content.get("patches", []) if "path" in patch]
    places += [file for source in content.get("configMapGenerator", []) for file in source.get("envs", [])]

    assert places
    assert [place for place in places if not (path.parent / place).exists()] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", sorted(FOLDER.glob("base/*.yaml")), ids=lambda path: path.stem)
def test_files_fit_the_schemas(path: Path, version: str):
    """Each object of the base fits the strict schema of Kubernetes, also without kustomize at hand."""
    if path.name != "kustomization.yaml":
        for found in objects_of(path):
            kubernetes_validate.validate(found, version, strict=True)


def test_rendered_objects_fit_the_schemas(objects: list[Object]):
    """What is applied fits the strict schemas of all versions of Kubernetes that count."""
    for found in objects:
        if found["apiVersion"] != OPERATOR:
            for version in VERSIONS:
                kubernetes_validate.validate(found, version, strict=True)


def test_schemas_refuse_what_is_wrong():
    """A misspelled field is refused: the schemas are strict."""
    wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "x"}, "spec": {"porst": []}}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_server_understands_its_settings(objects: list[Object]):
    """Every variable of the server is a flag with a value that it takes, and its pod has time to drain."""
    config = server_config(objects)
    spec = pod_of(mixer(objects))["spec"]
    pause_s = container(mixer(objects))["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert container(mixer(objects))["args"] == ["serve"]
    assert spec["terminationGracePeriodSeconds"] >= config.exit_timeout_s + pause_s + 5


def test_ranks_understand_their_settings(objects: list[Object]):
    """torchrun and the trainer take what the job says; ranks find one another and the servers by names that exist."""
    launch, config = train_config(objects)
    job = trainer(objects)

    assert int(launch.nnodes) == job["spec"]["completions"] == job["spec"]["parallelism"]
    host, _, port = launch.rdzv_endpoint.partition(":")
    pod, _, subdomain = host.partition(".")
    assert (pod, subdomain) == (f"{job['metadata']['name']}-0", pod_of(job)["spec"]["subdomain"])
    assert named(objects, "Service", subdomain)["spec"]["ports"][0]["port"] == int(port)
    [target] = check_targets(config.mixing.endpoint)
    name, _, port = target.removeprefix("dns:///").partition(":")
    assert int(port) in {entry["port"] for entry in named(objects, "Service", name)["spec"]["ports"]}
    assert config.mixing.mixer


def test_paths_are_mounted(objects: list[Object]):
    """Every absolute path in a setting lies below a volume of its pod, and secrets of servers are where flags say."""
    for workload in workloads(objects):
        mounts = [mount["mountPath"] for mount in container(workload)["volumeMounts"]]
        paths = [value for value in settings_of(objects, workload).values() if value.startswith("/")]
        paths += [arg.partition("=")[2] for arg in container(workload)["args"] if "=/" in arg]
        assert [path for path in paths if not any(path.startswith(f"{mount}/") for mount in mounts)] == []


def test_volumes_exist(objects: list[Object]):
    """Mounts name volumes, and volumes claims, that are there."""
    claims = {found["metadata"]["name"] for found in of_kind(objects, "PersistentVolumeClaim")}
    for workload in workloads(objects):
        volumes = {volume["name"]: volume for volume in pod_of(workload)["spec"]["volumes"]}
        used = {mount["name"] for each in containers_of(workload) for mount in each["volumeMounts"]}
        assert used <= volumes.keys()
        claimed = [volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values()
                   if "persistentVolumeClaim" in volume]  # fmt: skip
        assert set(claimed) <= claims


def test_ports_are_those_of_the_programs(objects: list[Object]):
    """Containers open the ports that the programs listen on, and services and probes lead to them."""
    config = server_config(objects)
    ports = {port["name"]: port["containerPort"] for port in container(mixer(objects))["ports"]}

    assert ports == {"grpc": config.grpc_port, "http": config.http_port, "metrics": config.metrics_port}
    assert {"name": "metrics", "containerPort": MetricsConfig().port} in container(trainer(objects))["ports"]
    for service in of_kind(objects, "Service"):
        [workload] = [one for one in workloads(objects) if matches(service["spec"]["selector"], labels_of(one))]
        names = {port["name"]: port["containerPort"] for port in container(workload)["ports"]}
        for port in service["spec"]["ports"]:
            assert names[port["targetPort"]] == port["port"]
    for probe in probes_of(container(mixer(objects))):
        assert probe.get("httpGet", {}).get("port", "http") in ports
        assert probe.get("grpc", {}).get("port", config.grpc_port) == config.grpc_port


def test_selectors_find_pods(objects: list[Object]):
    """Whatever selects pods selects those of exactly one workload, policies of the network also their peers'."""
    selectors = [
        one["spec"]["selector"]["matchLabels"] for one in of_kind(objects, "Deployment", "PodDisruptionBudget")
    ]
    selectors += [one["spec"]["podSelector"]["matchLabels"] for one in of_kind(objects, "NetworkPolicy")]
    selectors += [one["spec"]["selector"]["matchLabels"] for one in of_kind(objects, "PodMonitor")]
    for policy in of_kind(objects, "NetworkPolicy"):
        rules = [*policy["spec"]["ingress"], *policy["spec"]["egress"]]
        peers = [peer for rule in rules for peer in [*rule.get("from", []), *rule.get("to", [])]]
        selectors += [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]

    assert len(selectors) >= 7
    for selector in selectors:
        assert len([one for one in workloads(objects) if matches(selector, labels_of(one))]) == 1, selector


def test_nobody_is_root(objects: list[Object]):
    """Every container runs as a user of its own, on a read-only root, with no capability and no token."""
    for workload in workloads(objects):
        spec = pod_of(workload)["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in containers_of(workload):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in each["resources"]["limits"]
    for account in of_kind(objects, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_gpus():
    """The overlay for GPUs asks for one for each program, on nodes that have them, and computes there in bf16."""
    objects = rendered("overlays/gpu")

    for workload in workloads(objects):
        spec = pod_of(workload)["spec"]
        assert container(workload)["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert [one["key"] for one in spec["tolerations"]] == ["nvidia.com/gpu"]
    assert (server_config(objects).device, server_config(objects).precision) == ("cuda", "bf16")
    assert (train_config(objects)[1].device, train_config(objects)[1].precision) == ("cuda", "bf16")


def test_encrypted_servers_are_asked_in_tls():
    """With TLS no probe and no monitor speaks plain text, and gRPC, whose probes know no TLS, is asked over HTTP."""
    objects = rendered("overlays/tls")
    security = server_config(objects).security

    assert security.has_tls
    assert not security.is_open
    for probe in probes_of(container(mixer(objects))):
        assert probe["httpGet"]["scheme"] == "HTTPS"
    [endpoint] = named(objects, "ServiceMonitor", "samix-mixer")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    services = of_kind(objects, "Service")
    assert not [port for one in services for port in one["spec"]["ports"] if "h2c" in port.get("appProtocol", "")]
