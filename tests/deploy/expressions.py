"""What the files below deploy/ ask Prometheus, and which labels the answers have."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
DASHBOARDS = DEPLOY / "grafana" / "dashboards"

ON_TARGETS = {"samix-mixer": {"job", "instance", "worker"}, "samix-trainer": {"job", "instance", "run"}}
"""Labels that Prometheus, or the parent of several workers, adds to all series of a program."""

Labels = frozenset[str]


@dataclass(frozen=True)
class Question:
    """One expression."""

    place: str
    """Where it stands: dashboard and panel, or the name of a rule."""
    expr: str
    legend: str = ""
    """Text with the labels that it should have: {{label}} or $labels.label."""

    def __str__(self) -> str:
        return self.place


def panel_questions() -> Iterator[Question]:
    """Read every expression of every dashboard, with Grafana's variables filled in."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                place = f"{path.stem}: {panel['title']} {target['refId']}"
                yield Question(place, filled_in(target["expr"]), target.get("legendFormat", ""))


def rule_questions(kind: str) -> Iterator[Question]:
    """Read every expression of the rules; `kind` is record or alert."""
    for path in sorted(RULES.glob("*.yml")):
        for rule in rules_of(path):
            if kind in rule:
                yield Question(rule[kind], rule["expr"], " ".join(rule.get("annotations", {}).values()))


def rules_of(path: Path) -> list[dict[str, Any]]:
    """Read the rules of a file."""
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def filled_in(expr: str) -> str:
    """Put values in the place of Grafana's variables."""
    windows = {"$__rate_interval": "1m", "$__range": "1h"}
    for variable, window in windows.items():
        expr = expr.replace(variable, window)
    return re.sub(r'"\$\w+"', '".*"', expr)


def named_labels(question: Question) -> set[str]:
    """Find the labels that a legend or an annotation shows."""
    return {first or second for first, second in re.findall(r"{{(\w+)}}|\$labels\.(\w+)", question.legend)}


def nodes(expr: str | promql.Expr) -> list[promql.Expr]:
    """List an expression and all that it is made of."""
    found: list[promql.Expr] = []
    promql.walk(promql.parse(expr) if isinstance(expr, str) else expr, lambda node: found.append(node))
    return found


def selectors(expr: str) -> list[promql.VectorSelector]:
    """List the series that an expression asks for."""
    return [node for node in nodes(expr) if isinstance(node, promql.VectorSelector)]


def labels_of(expr: promql.Expr, families: Mapping[str, Labels]) -> Labels:
    """Say which labels the answer has.

    Args:
        expr: an expression.
        families: labels of each series there is.

    Raises:
        AssertionError: if it asks for, or groups by, what there is not.
    """
    match expr:
        case promql.VectorSelector():
            assert expr.name is not None
            assert expr.name in families, f"there is no metric {expr.name}"
            labels = families[expr.name]
            _assert_known({matcher.name for matcher in expr.matchers.matchers}, labels, expr)
            return labels
        case promql.MatrixSelector():
            return labels_of(expr.vector_selector, families)
        case promql.AggregateExpr():
            inner = labels_of(expr.expr, families)
            grouping = frozenset(expr.modifier.labels if expr.modifier else ())
            _assert_known(grouping, inner, expr)
            return grouping
        case promql.BinaryExpr():
            return _labels_of_both(expr, labels_of(expr.lhs, families), labels_of(expr.rhs, families))
        case promql.Call():
            labels = frozenset().union(*(labels_of(arg, families) for arg in expr.args))
            return labels - {"le"} if expr.func.name == "histogram_quantile" else labels
        case promql.ParenExpr() | promql.UnaryExpr():
            return labels_of(expr.expr, families)
        case _:
            return frozenset()


def families_of(registry: CollectorRegistry, job: str) -> dict[str, Labels]:
    """Say which series the page of a registry has, and which labels in Prometheus, be they counted yet or not."""
    added = ON_TARGETS[job]
    families = {
        sample.name: frozenset(added | sample.labels.keys())
        for metric in registry.collect()
        for sample in metric.samples
    }
    for name, collector in registry._names_to_collectors.items():
        if isinstance(collector, MetricWrapperBase):
            bucket = {"le"} if name.endswith("_bucket") else set()
            families[name] = frozenset(added | bucket | set(collector._labelnames))
    return families


def without_thresholds(expr: str) -> str:
    """Have an alert answer 0 or 1 for whatever it watches, also where nothing is wrong."""
    watched = promql.transform(promql.parse(expr), _without_unless)
    return re.sub(r" (==|!=|<=|>=|<|>) ", r" \1 bool ", str(watched))


def _labels_of_both(expr: promql.BinaryExpr, left: Labels, right: Labels) -> Labels:
    matching = expr.modifier.matching if expr.modifier else None
    if matching is not None:
        _assert_known(matching.labels, left, expr)
        _assert_known(matching.labels, right, expr)
    else:
        assert left == right or not (left and right), f"{expr} never match, {sorted(left)} and {sorted(right)}"
    return left or right


def _without_unless(node: promql.Expr) -> promql.Expr | None:
    if isinstance(node, promql.BinaryExpr) and str(node.op).strip() == "unless":
        return node.lhs
    return None  # keeps it


def _assert_known(asked: Any, labels: Labels, expr: promql.Expr) -> None:
    unknown = set(asked) - labels
    assert not unknown, f"{unknown} are no labels of what is asked in {expr}; there are {sorted(labels)}"
