"""The vocabulary of our dashboards: a few words for panels, and what Grafana wants to read for them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
"""Grafana's grid."""

_SCHEMA_VERSION = 39
_SOURCE = {"type": "prometheus", "uid": "${source}"}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel."""

    expr: str
    """PromQL; `$__rate_interval` and the dashboard's variables are filled in by Grafana."""
    legend: str = ""
    """Name of its series, with `{{label}}`; empty shows all labels."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    queries: tuple[Query, ...]
    unit: str
    """Grafana's name of it: s, bytes, percentunit, ..."""
    help: str = ""
    """What to read from it, for the mouse."""
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    is_stacked: bool = False
    limit: float | None = None
    """Where it becomes bad; drawn as a red line or colour."""
    ceiling: float | None = None
    """Upper end of the axis; None lets Grafana choose."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side under a heading, of equal width."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8
    """In lines of Grafana's grid, of about 30 pixels."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice above the dashboard, of the values of a label."""

    name: str
    metric: str
    """Whose series have the label."""
    takes_many: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    help: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Make what Grafana's provisioning reads."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.help,
            "tags": ["samix"],
            "schemaVersion": _SCHEMA_VERSION,
            "editable": False,
            "refresh": "15s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "browser",
            "graphTooltip": 1,  # one crosshair over all panels
            "links": [_link_to_siblings()],
            "templating": {"list": [_source_choice(), *map(_choice, self.variables)]},
            "panels": list(_laid_out(self.rows)),
        }


def timeseries(title: str, *queries: Query, unit: str, **options: Any) -> Panel:
    """Lines over time."""
    return Panel(title, queries, unit, **options)


def stat(title: str, expr: str, unit: str, **options: Any) -> Panel:
    """One number, the newest."""
    return Panel(title, (Query(expr),), unit, kind="stat", **options)


def table(title: str, expr: str, help: str = "") -> Panel:  # noqa: A002, the word of the field
    """The labels of series, as they are now."""
    return Panel(title, (Query(expr),), "none", kind="table", help=help)


def _laid_out(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in rows:
        number += 1
        heading = {"h": 1, "w": COLUMNS, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": row.title, "collapsed": False, "gridPos": heading, "panels": []}
        top += 1
        width = COLUMNS // len(row.panels)
        for column, panel in enumerate(row.panels):
            number += 1
            place = {"h": row.height, "w": width, "x": column * width, "y": top}
            yield {"id": number, "gridPos": place, **_panel(panel)}
        top += row.height


def _panel(panel: Panel) -> dict[str, Any]:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": [_target(panel, *numbered) for numbered in enumerate(panel.queries)],
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "fillOpacity": 30 if panel.is_stacked else 8,
            "stacking": {"mode": "normal" if panel.is_stacked else "none"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "line"},
            "showPoints": "never",
        }
    if panel.ceiling is not None:
        defaults["max"] = panel.ceiling
    return defaults


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "area"}
    return {"cellHeight": "sm"}


def _target(panel: Panel, number: int, query: Query) -> dict[str, Any]:
    target: dict[str, Any] = {"refId": "ABCDEFGHIJ"[number], "datasource": _SOURCE, "expr": query.expr}
    if query.legend:
        target["legendFormat"] = query.legend
    if panel.kind == "table":
        target |= {"format": "table", "instant": True}
    return target


def _source_choice() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _choice(variable: Variable) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "name": variable.name,
        "type": "query",
        "datasource": _SOURCE,
        "query": f"label_values({variable.metric}, {variable.name})",
        "refresh": 2,  # whenever the time range changes: runs and replicas come and go
        "sort": 1,
    }
    if variable.takes_many:
        choice |= {"multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}}
    return choice


def _link_to_siblings() -> dict[str, Any]:
    return {"type": "dashboards", "title": "SAMix", "tags": ["samix"], "asDropdown": False, "keepTime": True}
