"""The panels of a dashboard, and their JSON for Grafana."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from services.metrics.alerting.rules.alert_rule import DashboardName

PROMETHEUS: Final = {"type": "prometheus", "uid": "${prometheus_datasource}"}
LOKI: Final = {"type": "loki", "uid": "${loki_datasource}"}
#: In 24ths of the dashboard's width.
WHOLE, HALF, THIRD, QUARTER = 24, 12, 8, 6
_GROUPED: Final = re.compile(r"\bby \(([^)]+)\)")
_HEIGHTS: Final = {"stat": 4, "timeseries": 8, "table": 8, "logs": 10}


class PanelUnit(StrEnum):
    """Named as in Grafana."""

    SECONDS = "s"
    BYTES = "bytes"
    BYTES_PER_SECOND = "Bps"
    SHARE = "percentunit"
    REQUESTS = "reqps"
    PER_SECOND = "ops"
    NUMBER = "short"
    WATTS = "watt"
    CELSIUS = "celsius"
    YES_OR_NO = "bool_yes_no"
    TEXT = "none"


@dataclass(frozen=True, slots=True)
class PanelQuery:
    #: PromQL, or LogQL in a panel of logs.
    expression: str
    #: The name of its lines; `{{label}}` is a label's value.
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    #: Says what the panel shows and what is normal.
    help: str
    queries: tuple[PanelQuery, ...]
    unit: PanelUnit
    kind: str = "timeseries"
    width: int = HALF
    #: Values from here on are bad.
    bad_from: float | None = None
    #: Draw values on top of each other.
    stacked: bool = False
    #: Draw dots that link to traces.
    exemplars: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    board: DashboardName
    title: str
    help: str
    panels: tuple[Panel, ...]


def lines(title: str, help_: str, unit: PanelUnit, expression: str, legend: str = "", *others: PanelQuery, **more: Any) -> Panel:
    """By default, a line is named after the labels that the expression groups by."""
    grouped = _GROUPED.search(expression)
    labels = " ".join(f"{{{{{label}}}}}" for label in grouped[1].split(", ") if label != "le") if grouped else ""
    return Panel(title=title, help=help_, unit=unit, queries=(PanelQuery(expression, legend or labels), *others), **more)


def stat(title: str, help_: str, unit: PanelUnit, expression: str, **more: Any) -> Panel:
    return Panel(title=title, help=help_, unit=unit, queries=(PanelQuery(expression),), kind="stat", width=QUARTER, **more)


def render(dashboard: Dashboard) -> dict[str, Any]:
    """Return the JSON that Grafana imports."""
    return {
        "uid": str(dashboard.board),
        "title": f"aimesh / {dashboard.title}",
        "description": dashboard.help,
        "tags": ["aimesh"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "links": [{"type": "dashboards", "title": "aimesh", "tags": ["aimesh"], "asDropdown": True, "includeVars": True, "keepTime": True}],
        "annotations": {"list": [_alerts_on_top()]},
        "templating": {"list": [_source("prometheus_datasource", "Prometheus", "prometheus"), _source("loki_datasource", "Loki", "loki")]},
        "panels": list(_panels(dashboard.panels)),
    }


def _alerts_on_top() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "enable": True,
        "iconColor": "red",
        "datasource": PROMETHEUS,
        "expr": 'ALERTS{alertstate="firing", alertname!="watchdog"}',
        "titleFormat": "{{alertname}}",
    }


def _source(name: str, label: str, kind: str) -> dict[str, Any]:
    return {"name": name, "label": label, "type": "datasource", "query": kind, "current": {}, "hide": 0}


def _panels(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = tallest = 0
    for number, panel in enumerate(panels, 1):
        height = _HEIGHTS[panel.kind]
        if x + panel.width > WHOLE:
            x, y, tallest = 0, y + tallest, 0
        yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height})
        x, tallest = x + panel.width, max(tallest, height)


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    source = LOKI if panel.kind == "logs" else PROMETHEUS
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": source,
        "gridPos": place,
        "targets": [_target(letter, query, source, panel) for letter, query in zip("ABCDEFGH", panel.queries, strict=False)],
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _target(letter: str, query: PanelQuery, source: dict[str, str], panel: Panel) -> dict[str, Any]:
    found: dict[str, Any] = {"refId": letter, "datasource": source, "expr": query.expression}
    if panel.kind != "logs":
        found |= {"legendFormat": query.legend or "__auto", "exemplar": panel.exemplars, "instant": panel.kind in ("stat", "table")}
    if panel.kind == "table":
        found["format"] = "table"
    return found


def _field(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad_from is not None:
        steps.append({"color": "red", "value": panel.bad_from})
    field: dict[str, Any] = {"unit": str(panel.unit), "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.unit is not PanelUnit.CELSIUS and panel.kind == "timeseries":
        field["min"] = 0
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        shown = "line" if panel.bad_from is not None else "off"
        field["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 20 if panel.stacked else 5,
            "stacking": stacking,
            "thresholdsStyle": {"mode": shown},
        }
    return field


def _options(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "stat":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "colorMode": "value", "graphMode": "none"}
        case "timeseries":
            return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}
        case "logs":
            return {"showTime": True, "wrapLogMessage": True, "sortOrder": "Descending", "enableLogDetails": True}
        case _:
            return {}
