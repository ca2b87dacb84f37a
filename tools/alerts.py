"""Generate the reference page of the alerts, and the frame of each runbook, from the rule files.  `python -m tools.docs` runs it."""

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from services.metrics.alerting import rules, thresholds
from services.metrics.alerting.rules import AlertRule
from shared import features
from tools import generated

FOLDER = generated.ROOT / "docs" / "runbooks"
RULES = generated.ROOT / "deploy" / "prometheus" / "rules"

_PAGE = """# Objectives and alerts

The service level objectives, and the alerts for them. Prometheus reads the rules from `deploy/prometheus/rules/*.rules.yml`, which are
written by hand. The [runbooks](../runbooks/README.md) explain how to run Prometheus and Alertmanager, and have a page for each alert.

## Objectives

Over 30 days. Every admitted request that did not succeed counts as an error, unless the caller canceled it. Requests rejected by a limit
were not admitted. If there were fewer than 50 requests in the long window, no alert fires.

| objective | error budget | alert |
|---|---|---|
| 99.9 % of admitted requests succeed, without an error or a timeout | 0.1 % | `availability_burn` |
| 99.95 % of admitted requests to each model succeed, without an error or a timeout | 0.05 % | `model_availability_burn` |
| 95 % of answers start within 2.5 s, including queueing | 5 % | `first_token_burn` |

An alert fires when the error budget burns too fast: at a burn rate of 1 it lasts exactly 30 days. It fires while both windows exceed the
rate, so it ends soon after the problem does (SRE workbook, chapter 5, table 5-8).

| speed | long window | short window | severity |
|---|---|---|---|
| 14.4 | 1h | 5m | page |
| 6 | 6h | 30m | page |
| 3 | 1d | 2h | ticket |
| 1 | 3d | 6h | ticket |

## Alerts

Severities: *page* wakes someone up, *critical* needs action within an hour, *warning* today, *ticket* this week. *for* is how long the
condition holds before the alert fires. Without Prometheus, the metrics service itself watches {built_in}.

{alerts}

## Recorded series

Prometheus computes these series for the objectives.

{series}
"""


def page() -> str:
    """Return the reference page, in Markdown."""
    rows = ((_link(rule), *_cells(rule, _shown(rule))) for rule in rules.load())
    recorded = yaml.safe_load((RULES / "recorded.rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    names = [f"`{name}`" for name in thresholds.FORMATS]
    return _PAGE.format(
        built_in=f"{', '.join(names[:-1])} and {names[-1]}",
        alerts=generated.table(("alert", "severity", "for", "what it says", "condition"), rows),
        series=generated.table(("series", "expression"), ((f"`{one['record']}`", f"`{one['expr']}`") for one in recorded)),
    )


def _link(rule: AlertRule) -> str:
    return f"[{rule.name}]({os.path.relpath(rule.texts.runbook, 'docs/reference')})"


def _cells(rule: AlertRule, *says: str) -> tuple[str, ...]:
    return rule.severity, rule.hold or "–", *says, f"`{rule.expression}`"


def _shown(rule: AlertRule) -> str:
    return re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"{\1}", rule.texts.summary)


def files() -> dict[Path, str]:
    """Return the runbooks with their frames: what stands between the heading and the first section."""
    found = {RULES / "features.rules.yml": _of_features()}
    for name, group in itertools.groupby(sorted(rules.load(), key=lambda rule: rule.name), key=lambda rule: rule.name):
        members = list(group)
        runbook = members[0].texts.runbook
        path = FOLDER / f"{name}.md" if runbook.startswith("docs/") else generated.ROOT / runbook
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        found[path] = f"# {name}\n\n{_frame(members)}\n{text[text.index('## ') :]}"
    return found


def _of_features() -> str:
    """Prometheus, the chart and the wheel read one folder."""
    parts = [path.read_text(encoding="utf-8").removeprefix("groups:\n").strip() for path in features.files("alerts.rules.yml")]
    return "\n".join(("# Made of features/*/alerts.rules.yml by `make docs`.", "groups:" if parts else "groups: []", *parts, ""))


def _frame(members: Iterable[AlertRule]) -> str:
    return generated.table(("severity", "for", "condition", "board"), ((*_cells(rule), rule.texts.board) for rule in members)) + "\n"
