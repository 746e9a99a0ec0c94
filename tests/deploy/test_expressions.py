"""Dashboards, rules and alerts ask for what our programs count, and nothing else."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grpc
import promql_parser as promql
import pytest
import yaml
from expressions import (
    DASHBOARDS,
    DEPLOY,
    RULES,
    Labels,
    Question,
    labels_of,
    named_labels,
    panel_questions,
    rule_questions,
    rules_of,
    selectors,
)

RUNBOOK = DEPLOY.parent / "docs/operations.md"
QUESTIONS = [*panel_questions(), *rule_questions("record"), *rule_questions("alert")]
NEEDS_PROMTOOL = pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt install prometheus")


@pytest.mark.parametrize("question", QUESTIONS, ids=str)
def test_asks_for_what_there_is(question: Question, families: dict[str, Labels]):
    """An expression parses, its metrics and labels exist, and its answer has the labels that its text shows."""
    answered = labels_of(promql.parse(question.expr), families)

    assert named_labels(question) <= answered


def test_codes_exist():
    """Status codes are compared with such as gRPC has."""
    matchers = [m for q in QUESTIONS for s in selectors(q.expr) for m in s.matchers.matchers if m.name == "code"]

    codes = {code for matcher in matchers for code in matcher.value.split("|")}
    assert codes >= {"OK", "INTERNAL", "RESOURCE_EXHAUSTED"}
    assert codes <= {code.name for code in grpc.StatusCode}


def test_a_metric_that_does_not_exist_is_found(families: dict[str, Labels]):
    """The check above is none that passes everything: misspelt metrics, labels and groupings are refused."""
    for expr in (
        "mixer_imagse_total",
        "up{jbo='x'}",
        "sum by (rank) (mixer_images_total)",
        "trainer_loss / on (le) up",
    ):
        with pytest.raises(AssertionError, match=r"no metric|no labels"):
            labels_of(promql.parse(expr), families)


def test_committed_dashboards_are_fresh(tmp_path: Path):
    """The JSON files are what their source makes: `make dashboards` was not forgotten."""
    subprocess.run([sys.executable, DEPLOY / "grafana/dashboards.py", tmp_path], check=True)

    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS.iterdir()}
    assert len(made) == 3


@pytest.mark.parametrize("path", sorted(DASHBOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_panels_do_not_overlap(path: Path):
    """Every panel lies within Grafana's 24 columns, and no two share a cell."""
    places = [panel["gridPos"] for panel in json.loads(path.read_text())["panels"]]
    cells = Counter(
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )

    assert set(cells.values()) == {1}
    assert max(x for x, _ in cells) <= 23


@pytest.mark.parametrize("path", sorted(DASHBOARDS.glob("*.json")), ids=lambda path: path.stem)
def test_variables_of_dashboards_exist(path: Path, families: dict[str, Labels]):
    """A choice above a dashboard is one of the values of a label that its metric has, and every one used is offered."""
    text = path.read_text()
    choices = json.loads(text)["templating"]["list"]
    offered = {choice["name"] for choice in choices}

    assert set(re.findall(r'\\"\$(\w+)\\"', text)) <= offered
    for choice in choices:
        if choice["type"] == "query":
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", choice["query"])
            assert asked is not None
            assert asked[2] in labels_of(promql.parse(asked[1].replace("$run", ".*")), families)


def test_every_alert_has_its_entry_in_the_runbook():
    """An alert names a heading of docs/operations.md, and the page describes no alert that does not exist."""
    alerts = {rule["alert"]: rule for rule in rules_of(RULES / "alerts.yml")}
    headings = set(re.findall(r"^### (\w+)$", RUNBOOK.read_text(), re.MULTILINE))

    assert headings == set(alerts)
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_queries_of_the_objectives_are_sound(families: dict[str, Labels]):
    """The PromQL blocks of docs/operations.md parse and ask for what there is."""
    blocks = re.findall(r"```promql\n(.*?)```", RUNBOOK.read_text(), re.DOTALL)

    assert len(blocks) == 4
    for block in blocks:
        labels_of(promql.parse(block), families)


def test_inhibitions_name_alerts_that_exist():
    """Alertmanager mutes effects by the names of alerts that there are."""
    config = yaml.safe_load((DEPLOY / "alertmanager/alertmanager.yml").read_text())
    matchers = " ".join(
        text for rule in config["inhibit_rules"] for text in rule["source_matchers"] + rule["target_matchers"]
    )

    named = set(re.findall(r"[A-Z]\w+", matchers))
    assert named
    assert named <= {rule["alert"] for rule in rules_of(RULES / "alerts.yml")}


@NEEDS_PROMTOOL
@pytest.mark.parametrize(
    "arguments", [("rules", *RULES.glob("*.yml")), ("config", DEPLOY / "prometheus/prometheus.yml")]
)
def test_promtool_accepts(arguments: tuple):
    """Rules, configuration and the templates in annotations are valid."""
    check = subprocess.run(["promtool", "check", *arguments], capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout + check.stderr


@NEEDS_PROMTOOL
def test_promtool_parses_every_panel(tmp_path: Path):
    """Prometheus's own parser takes the expressions of all panels."""
    rules = [{"record": f"panel_{number}", "expr": question.expr} for number, question in enumerate(panel_questions())]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))

    check = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout + check.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="needs amtool: apt install prometheus-alertmanager")
def test_amtool_accepts_the_configuration():
    """Alertmanager's configuration is valid."""
    path = DEPLOY / "alertmanager/alertmanager.yml"

    check = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True, check=False)

    assert check.returncode == 0, check.stdout + check.stderr
