"""What the kustomizations below deploy/kubernetes say, file by file and rendered by kustomize."""

import functools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from expressions import DEPLOY

FOLDER = DEPLOY / "kubernetes"
ENTRANCES = ("base", "overlays/gpu", "overlays/replicas", "overlays/tls")
"""Kustomizations that somebody applies."""
OPERATOR = "monitoring.coreos.com/v1"
"""API of the objects that the Prometheus operator reads."""

Object = dict[str, Any]


def kustomizations() -> list[Path]:
    return sorted(FOLDER.rglob("kustomization.yaml"))


def objects_of(path: Path) -> list[Object]:
    """Read the objects of one file."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


@functools.cache
def rendered(entrance: str) -> list[Object]:
    """Render a kustomization with the real program; skips the test where there is none."""
    if kustomize := shutil.which("kustomize"):
        command = [kustomize, "build"]
    elif kubectl := shutil.which("kubectl"):
        command = [kubectl, "kustomize"]
    else:
        pytest.skip("needs kustomize or kubectl")
    done = subprocess.run([*command, FOLDER / entrance], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    [found] = [found for found in of_kind(objects, kind) if found["metadata"]["name"] == name]
    return found


def workloads(objects: list[Object]) -> list[Object]:
    return of_kind(objects, "Deployment", "Job")


def mixer(objects: list[Object]) -> Object:
    return named(objects, "Deployment", "samix-mixer")


def trainer(objects: list[Object]) -> Object:
    return named(objects, "Job", "samix-trainer")


def pod_of(workload: Object) -> Object:
    return workload["spec"]["template"]


def container(workload: Object) -> Object:
    """Find the one that is not there to prepare."""
    return pod_of(workload)["spec"]["containers"][0]


def labels_of(workload: Object) -> dict[str, str]:
    return pod_of(workload)["metadata"]["labels"]


def containers_of(workload: Object) -> list[Object]:
    spec = pod_of(workload)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def settings_of(objects: list[Object], workload: Object) -> Mapping[str, str]:
    """Read the variables that the first container has of its config map."""
    [source] = container(workload)["envFrom"]
    return named(objects, "ConfigMap", source["configMapRef"]["name"])["data"]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return selector.items() <= labels.items()


def probes_of(container: Object) -> Iterator[Object]:
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        if kind in container:
            yield container[kind]
