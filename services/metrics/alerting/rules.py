"""Read the alert rules of deploy/prometheus/rules. Prometheus evaluates them; the notices take severities, times and texts from them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from services.metrics.history.samples import Labels

_PACKAGE = Path(__file__).parents[1]
#: The wheel has the rules inside the package; a checkout and the container image have them under deploy.
_FOLDERS = (_PACKAGE / "rules", _PACKAGE.parents[1] / "deploy" / "prometheus" / "rules")
_LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Severity(StrEnum):
    """How soon someone must act."""

    #: Now, even at night: users get no answers, or data is inconsistent.
    PAGE = "page"
    #: Within the hour.
    CRITICAL = "critical"
    #: Today.
    WARNING = "warning"
    #: This week.
    TICKET = "ticket"
    #: Never: it shows that alerts work.
    NONE = "none"


#: Severity -> 0 for the most urgent.
RANKS = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertRule:
    """One rule. Rules with the same name share a runbook and differ in ``labels``."""

    name: str
    severity: Severity
    expression: str
    #: How long the condition must hold before the alert fires, as Prometheus writes it; empty for at once.
    hold: str
    summary: str
    description: str
    #: The path from the repository root.
    runbook: str
    #: The uid of the dashboard that shows it: a file of deploy/grafana/dashboards.
    board: str
    #: Labels in addition to those of the condition.
    labels: Labels

    @property
    def hold_seconds(self) -> int:
        return int(self.hold[:-1]) * _SECONDS[self.hold[-1]] if self.hold else 0


def load() -> tuple[AlertRule, ...]:
    folder = next(each for each in _FOLDERS if each.is_dir())
    return tuple(rule for path in sorted(folder.glob("*.rules.yml")) for rule in _read(path))


class _Texts(msgspec.Struct):
    summary: str
    description: str
    runbook_url: str
    dashboard: str


class _Written(msgspec.Struct, rename={"hold": "for"}):
    expr: str
    #: Empty for a recorded series; the same for ``annotations``.
    alert: str = ""
    hold: str = ""
    labels: dict[str, str] = {}
    annotations: _Texts | None = None


class _Group(msgspec.Struct):
    rules: list[_Written]


class _File(msgspec.Struct):
    groups: list[_Group]


def _read(path: Path) -> Iterator[AlertRule]:
    for group in msgspec.yaml.decode(path.read_bytes(), type=_File).groups:
        for one in group.rules:
            if one.annotations is not None:
                texts, labels = one.annotations, sorted((label, value) for label, value in one.labels.items() if label != "severity")
                yield AlertRule(
                    name=one.alert,
                    severity=Severity(one.labels["severity"]),
                    expression=one.expr,
                    hold=one.hold,
                    summary=texts.summary,
                    description=texts.description,
                    runbook=texts.runbook_url,
                    board=texts.dashboard,
                    labels=tuple(labels),
                )


def fill(text: str, labels: Labels) -> str:
    """Replace Prometheus' `{{ $labels.node }}` by the label."""
    values = dict(labels)
    return _LABEL.sub(lambda found: values.get(found[1], ""), text)
