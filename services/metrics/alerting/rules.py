"""Read the alert rules of deploy/prometheus/rules. Prometheus evaluates them; the notices take severities, times and texts from them."""

import re
from enum import StrEnum
from pathlib import Path

import msgspec

from services.metrics.history.samples import Labels
from shared import features

_PACKAGE = Path(__file__).parents[1]
#: The wheel has the rules inside the package; a checkout and the container image have them under deploy.
_FOLDERS = (_PACKAGE / "rules", _PACKAGE.parents[1] / "deploy" / "prometheus" / "rules")
#: It has no alerts.
_RECORDED = "recorded.rules.yml"
#: Made of those of features, for Prometheus.
_OF_FEATURES = "features.rules.yml"
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


class RuleTexts(msgspec.Struct, frozen=True, rename={"runbook": "runbook_url", "board": "dashboard"}):
    summary: str
    description: str
    #: The path from the repository root.
    runbook: str
    #: The uid of the dashboard that shows it: a file of deploy/grafana/dashboards.
    board: str


class AlertRule(
    msgspec.Struct, frozen=True, rename={"name": "alert", "expression": "expr", "written": "labels", "texts": "annotations", "hold": "for"}
):
    """One rule. Rules with the same name share a runbook and differ in ``labels``."""

    name: str
    expression: str
    written: dict[str, str]
    texts: RuleTexts
    #: How long the condition must hold before the alert fires; empty for at once.
    hold: str = ""

    @property
    def severity(self) -> Severity:
        return Severity(self.written["severity"])

    @property
    def labels(self) -> Labels:
        """Return the labels in addition to those of the condition."""
        return tuple(sorted((label, value) for label, value in self.written.items() if label != "severity"))

    @property
    def hold_seconds(self) -> int:
        return int(self.hold[:-1]) * _SECONDS[self.hold[-1]] if self.hold else 0


class _Group(msgspec.Struct):
    rules: list[AlertRule]


class _File(msgspec.Struct):
    groups: list[_Group]


def load() -> tuple[AlertRule, ...]:
    folder = next(each for each in _FOLDERS if each.is_dir())
    own = [path for path in sorted(folder.glob("*.rules.yml")) if path.name not in (_RECORDED, _OF_FEATURES)]
    files = [msgspec.yaml.decode(path.read_bytes(), type=_File) for path in (*own, *features.files("alerts.rules.yml"))]
    return tuple(rule for file in files for group in file.groups for rule in group.rules)


def fill(text: str, labels: Labels) -> str:
    """Replace Prometheus' `{{ $labels.node }}` by the label."""
    values = dict(labels)
    return _LABEL.sub(lambda found: values.get(found[1], ""), text)
