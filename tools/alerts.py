"""Writes the alert rules for Prometheus and their reference page, from the one list in services/metrics/alerting/rules.

python -m tools.alerts            writes deploy/prometheus/rules/
python -m tools.alerts --check    changes nothing; exits 1 with a diff if a file is not what the list says

`python -m tools.docs` does both, too.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from services.metrics.alerting.rules import all_rules, objectives, promql
from services.metrics.alerting.rules.alert_rule import AlertRule

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "deploy" / "prometheus" / "rules"
NOTICE = "# Generated from services/metrics/alerting/rules by `python -m tools.docs`. Changes made here are lost.\n"
#: Lines of diff shown for one file: enough to see what changed.
DIFF_LINES = 30
#: An expression is never broken, so that it can be found and copied.
_ONE_LINE = 100_000

PAGE_HEAD = """# Objectives and alerts

What users are promised, and when somebody is told that it is not so. Prometheus gets the rules as `deploy/prometheus/rules/*.rules.yml`;
how to run it and Alertmanager stands in [the runbooks](../runbooks/README.md), with a page for each alert.

## Objectives

Over 30 days. An error is whatever ended a request that was admitted, other than its caller leaving; what a limit refused was not admitted.
Where fewer than {least} requests came within the long window, no alert says anything about them.

"""

BURNS_HEAD = """
An alert tells how fast what an objective allows to go wrong is being used up: at 1 it lasts the 30 days. It fires while both windows are
over, and so ends soon after the trouble does.

"""

ALERTS_HEAD = """
## Alerts

*page*: somebody is woken. *critical*: within the hour. *warning*: today. *ticket*: this week. *for*: how long the condition holds
before the alert fires.

"""

RECORDED_HEAD = """
## Recorded

Series that Prometheus works out for the objectives, by their windows.

"""


def rule_files() -> dict[str, str]:
    """Name -> text of every file of rules."""
    files = {"recorded": _file("recorded", [{"record": one.name, "expr": promql.recorded(one)} for one in all_rules.RECORDINGS])}
    files |= {group: _file(group, [_alert(rule) for rule in members]) for group, members in all_rules.GROUPS.items()}
    return {f"{name}.rules.yml": text for name, text in files.items()}


def annotation(text: str, own: Mapping[str, str]) -> str:
    """`{label}` as Prometheus has it. It does not know the labels there that the rule itself gives: those are filled in."""
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
    """The reference page, in Markdown."""
    return "".join(
        (
            PAGE_HEAD.format(least=objectives.LEAST_REQUESTS),
            _objectives(),
            BURNS_HEAD,
            _burns(),
            ALERTS_HEAD,
            _alerts(),
            RECORDED_HEAD,
            _recorded(),
        )
    )


def _objectives() -> str:
    lines = ["| objective | may go wrong | alert |", "|---|---|---|"]
    lines += [f"| {one.promise} | {promql.number(one.allowed * 100)} % | {_runbook(one.name)} |" for one in objectives.OBJECTIVES]
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


# --- writing and comparing ------------------------------------------------------------------------------------------


def drift() -> dict[str, str]:
    """Path -> the first lines of what differs, of every file that is not what the list says, or that nothing says any more."""
    wanted = rule_files()
    names = {*wanted, *(path.name for path in FOLDER.glob("*.yml"))}
    return {str((FOLDER / name).relative_to(ROOT)): found for name in sorted(names) if (found := _difference(name, wanted.get(name, "")))}


def _difference(name: str, wanted: str) -> str:
    path = FOLDER / name
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = difflib.unified_diff(written.splitlines(), wanted.splitlines(), name, "the list", lineterm="", n=1)
    return "\n".join(list(lines)[:DIFF_LINES])


def write() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = rule_files()
    for path in _left_over(wanted):
        path.unlink()
    for name, text in wanted.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


def _left_over(wanted: dict[str, str]) -> Iterator[Path]:
    return (path for path in list(FOLDER.glob("*.rules.yml")) if path.name not in wanted)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.alerts", description="Write the alert rules for Prometheus.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 with a diff if a file has drifted")
    if not parser.parse_args().check:
        write()
        return 0
    found = drift()
    for path, difference in found.items():
        print(
            f"{path} is not what services/metrics/alerting/rules says; `python -m tools.alerts` writes it\n{difference}\n", file=sys.stderr
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
