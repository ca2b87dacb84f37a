"""Generate the alert rules for Prometheus and their reference page.  `python -m tools.docs` runs it."""

import re
from collections.abc import Mapping

import yaml

from services.metrics.alerting.rules import all_rules, objectives, promql
from services.metrics.alerting.rules.alert_rule import AlertRule
from tools import generated

FOLDER = generated.ROOT / "deploy" / "prometheus" / "rules"
NOTICE = "# Generated from services/metrics/alerting/rules by `python -m tools.docs`. Changes made here are lost.\n"
#: Expressions stay on one line, so that they can be searched and copied.
_ONE_LINE = 100_000

PAGE_HEAD = """# Objectives and alerts

The service level objectives, and the alerts for them. Prometheus reads the rules from `deploy/prometheus/rules/*.rules.yml`. The
[runbooks](../runbooks/README.md) explain how to run Prometheus and Alertmanager, and have a page for each alert.

## Objectives

Over 30 days. Every admitted request that did not succeed counts as an error, unless the caller canceled it. Requests rejected by a limit
were not admitted. If there were fewer than {least} requests in the long window, no alert fires.

"""

BURNS_HEAD = """
An alert fires when the error budget burns too fast: at a burn rate of 1 it lasts exactly 30 days. It fires while both windows exceed the
rate, so it ends soon after the problem does.

"""

ALERTS_HEAD = """
## Alerts

Severities: *page* wakes someone up, *critical* needs action within an hour, *warning* today, *ticket* this week. *for* is how long the
condition holds before the alert fires.

"""

RECORDED_HEAD = """
## Recorded series

Prometheus computes these series for the objectives, for each window.

"""


def rule_files() -> dict[str, str]:
    files = {"recorded": _file("recorded", [{"record": one.name, "expr": promql.recorded(one)} for one in all_rules.RECORDINGS])}
    files |= {group: _file(group, [_alert(rule) for rule in members]) for group, members in all_rules.GROUPS.items()}
    return {f"{name}.rules.yml": text for name, text in files.items()}


def annotation(text: str, own: Mapping[str, str]) -> str:
    """Convert `{label}` to Prometheus' syntax. Labels that the rule itself sets are unknown there, so insert their values."""
    return re.sub(r"\{(\w+)\}", lambda found: own.get(found[1], f"{{{{ $labels.{found[1]} }}}}"), text)


def _file(group: str, members: list[dict[str, object]]) -> str:
    return NOTICE + yaml.safe_dump({"groups": [{"name": group, "rules": members}]}, sort_keys=False, width=_ONE_LINE)


def _alert(rule: AlertRule) -> dict[str, object]:
    return {
        "alert": rule.name,
        "expr": promql.render(rule.when),
        **({"for": promql.duration(rule.hold_seconds)} if rule.hold_seconds else {}),
        "labels": {"severity": rule.severity.value, **dict(rule.labels)},
        "annotations": {
            "summary": annotation(rule.summary, dict(rule.labels)),
            "description": annotation(rule.description, dict(rule.labels)),
            "runbook_url": rule.runbook,
            "dashboard": rule.board.value,
        },
    }


# --- docs/reference/alerts.md ---------------------------------------------------------------------------------------


def page() -> str:
    """Return the reference page, in Markdown."""
    head = PAGE_HEAD.format(least=objectives.LEAST_REQUESTS)
    return head + _objectives() + BURNS_HEAD + _burns() + ALERTS_HEAD + _alerts() + RECORDED_HEAD + _recorded()


def _objectives() -> str:
    lines = ["| objective | error budget | alert |", "|---|---|---|"]
    lines += [f"| {one.statement} | {promql.number(one.allowed * 100)} % | {_runbook(one.name)} |" for one in objectives.OBJECTIVES]
    return "\n".join(lines) + "\n"


def _burns() -> str:
    lines = ["| speed | long window | short window | severity |", "|---|---|---|---|"]
    lines += [
        f"| {promql.number(burn.rate)} | {promql.duration(burn.long_seconds)} | {promql.duration(burn.short_seconds)} | {burn.severity} |"
        for burn in objectives.BURNS
    ]
    return "\n".join(lines) + "\n"


def _alerts() -> str:
    lines = ["| alert | severity | for | what it says | condition |", "|---|---|---|---|---|"]
    for rule in all_rules.ALL:
        held = promql.duration(rule.hold_seconds) if rule.hold_seconds else "–"
        condition = promql.render(rule.when).replace("|", "\\|")
        lines.append(f"| {_runbook(rule.name)} | {rule.severity} | {held} | {rule.summary} | `{condition}` |")
    return "\n".join(lines) + "\n"


def _recorded() -> str:
    lines = []
    for objective in objectives.OBJECTIVES:
        windows = ", ".join(f"`{promql.duration(seconds)}`" for seconds in objectives.windows_of(objective))
        shown = promql.recorded(objective.bad_ratio(300)).replace("5m", "…")
        lines.append(f"- `ai_platform:{objective.recorded_as}_rate…` for {windows}: `{shown}`")
    return "\n".join(lines) + "\n"


def _runbook(name: str) -> str:
    return f"[{name}](../runbooks/{name}.md)"


# --- the files ------------------------------------------------------------------------------------------------------


def drift() -> dict[str, str]:
    return generated.drift(FOLDER, rule_files(), obsolete="*.yml")


def write() -> None:
    generated.write(FOLDER, rule_files(), obsolete="*.rules.yml")
