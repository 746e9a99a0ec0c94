"""Monitors, rules and the autoscaler of the manifests for Kubernetes fit the programs and the Prometheus operator."""

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from expressions import DEPLOY
from kubernetes_objects import (
    FOLDER,
    OPERATOR,
    Object,
    container,
    labels_of,
    matches,
    mixer,
    named,
    objects_of,
    of_kind,
    rendered,
    trainer,
)

FIELDS_OF_MONITORS = {
    "ServiceMonitor": {"jobLabel", "selector", "endpoints"},
    "PodMonitor": {"jobLabel", "selector", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}
FIELDS_OF_ENDPOINTS = {"port", "interval", "scheme", "tlsConfig", "authorization", "relabelings"}
FIELDS_OF_RULES = {"record", "alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
"""The operator publishes its schemas for Go alone; these are the fields that we use, as it documents them."""


@pytest.mark.parametrize("entrance", ["overlays/replicas", "overlays/tls"])
def test_objects_of_the_operator_have_fields_that_it_knows(entrance: str):
    """Monitors and rules are made of documented fields."""
    found = [one for one in rendered(entrance) if one["apiVersion"] == OPERATOR]

    assert {one["kind"] for one in found} == FIELDS_OF_MONITORS.keys()
    for one in found:
        assert one["spec"].keys() <= FIELDS_OF_MONITORS[one["kind"]]
        for endpoint in [*one["spec"].get("endpoints", []), *one["spec"].get("podMetricsEndpoints", [])]:
            assert endpoint.keys() <= FIELDS_OF_ENDPOINTS
        for group in one["spec"].get("groups", []):
            assert group.keys() <= {"name", "interval", "rules"}
            assert all(rule.keys() <= FIELDS_OF_RULES for rule in group["rules"])


def test_replicas_follow_the_queue():
    """The autoscaler has the deployment's replicas for itself, by a metric that a rule records and the docs serve."""
    objects = rendered("overlays/replicas")
    scaler = named(objects, "HorizontalPodAutoscaler", "samix-mixer")["spec"]
    [metric] = scaler["metrics"]
    records = [rule.get("record") for group in rules(objects) for rule in group["rules"]]
    docs = (DEPLOY.parent / "docs/kubernetes.md").read_text()

    assert "replicas" not in mixer(objects)["spec"]
    assert scaler["scaleTargetRef"]["name"] == mixer(objects)["metadata"]["name"]
    assert "pod:mixer_queue_seconds:mean2m" in records
    assert "pod:mixer_queue_seconds:mean2m" in docs
    assert f"as: {metric['pods']['metric']['name']}" in docs


def rules(objects: list[Object]) -> list[Object]:
    return named(objects, "PrometheusRule", "samix")["spec"]["groups"]


def test_monitors_find_pages_and_name_jobs():
    """Monitors read ports that exist, and give series the labels that the rules ask for."""
    objects = rendered("overlays/replicas")
    monitor = named(objects, "ServiceMonitor", "samix-mixer")["spec"]
    [service] = [one for one in of_kind(objects, "Service")
                 if matches(monitor["selector"]["matchLabels"], one["metadata"]["labels"])]  # fmt: skip
    runs = named(objects, "PodMonitor", "samix-trainer")["spec"]

    assert service["metadata"]["labels"][monitor["jobLabel"]] == "samix-mixer"
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert labels_of(trainer(objects))[runs["jobLabel"]] == "samix-trainer"
    assert runs["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container(trainer(objects))["ports"]}
    [relabeling] = runs["podMetricsEndpoints"][0]["relabelings"]
    label = relabeling["sourceLabels"][0].removeprefix("__meta_kubernetes_pod_label_")
    assert label in {re.sub(r"\W", "_", name) for name in labels_of(trainer(objects))}


def test_rules_are_those_of_prometheus(tmp_path: Path):
    """The committed rules are what `make kubernetes-rules` writes, all of deploy/prometheus."""
    runpy.run_path(str(FOLDER / "rules.py"))["main"](tmp_path / "rules.yaml")

    assert (tmp_path / "rules.yaml").read_text() == (FOLDER / "components/monitoring/rules.yaml").read_text()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_rules(tmp_path: Path):
    """Prometheus takes the groups of the object as it takes our files."""
    [rule] = objects_of(FOLDER / "components/monitoring/rules.yaml")
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]))

    check = subprocess.run(["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True)

    assert check.returncode == 0, check.stdout + check.stderr
