"""Prometheus and our evaluator agree on every alert at every step: promtool runs the shipped rules over the series of the trials and
expects the alerts that the evaluator found."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.metrics.alerting.rules import all_rules
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.evaluation import Labels
from tests.services.metrics.alerting.rules import debian, trials
from tests.services.metrics.alerting.rules.series import firing, watch
from tests.services.metrics.alerting.rules.trials import Course, Line, Values
from tools import alerts


def notation(values: Values) -> str:
    """Return the values in promtool's notation. A series that disappears is stale from then on."""
    words = ["_" if value is None else repr(value) for value in values]
    for at, value in enumerate(values):
        if value is None and at and values[at - 1] is not None:
            words[at] = "stale"
    return " ".join(words)


def expected(rule: AlertRule, key: Labels) -> dict[str, object]:
    """Return one alert as Prometheus shows it."""
    has = dict(key)

    def filled(text: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda found: has.get(found[1], ""), text)

    return {
        "exp_labels": {**has, "severity": rule.severity.value},
        "exp_annotations": {
            "summary": filled(rule.summary),
            "description": filled(rule.description),
            "runbook_url": rule.runbook,
            "dashboard": rule.board.value,
        },
    }


def write(path: Path, name: str, lines: Sequence[Line], course: Course, step_seconds: int) -> int:
    """Write a test for promtool that compares every step. Returns the total number of alerts."""
    watched = [(rule, watch(rule, lines, step_seconds, course.steps, like_prometheus=True)) for rule in all_rules.ALL if rule.name == name]
    found = [[expected(rule, key) for rule, seen in watched for key in sorted(firing(seen[at]))] for at in range(course.steps)]
    group = next(group for group, members in all_rules.GROUPS.items() if name in {rule.name for rule in members})
    # Recording rules come first, because an alert uses values that were recorded at the same moment.
    groups = ["recorded", group] if group == "objectives" else [group]
    test = {
        "rule_files": [str(alerts.FOLDER / f"{each}.rules.yml") for each in groups],
        "evaluation_interval": f"{step_seconds}s",
        "group_eval_order": groups,
        "tests": [
            {
                "interval": f"{step_seconds}s",
                "input_series": [{"series": _series(line), "values": notation(line.values)} for line in lines],
                "alert_rule_test": [
                    {"eval_time": f"{at * step_seconds}s", "alertname": name, "exp_alerts": each} for at, each in enumerate(found)
                ],
            }
        ],
    }
    path.write_text(json.dumps(test), encoding="utf-8")  # JSON is also YAML, and faster
    return sum(len(each) for each in found)


def _series(line: Line) -> str:
    pairs = ", ".join(f'{label}="{value}"' for label, value in line.labels)
    return f"{line.name}{{{pairs}}}"


def check(folder: Path) -> None:
    """Run all tests of a folder in one process, which is faster. promtool names the files that fail."""
    debian.check("promtool", "test", "rules", *sorted(folder.iterdir()))


@pytest.mark.nightly("long")
def test_prometheus_fires_and_resolves_the_same_alerts(tmp_path: Path) -> None:
    for trial in trials.ALL:
        assert write(tmp_path / f"{trial.id}.yml", trial.rule.name, trial.lines(trial.course, trial.over), trial.course, trial.step_seconds)
    check(tmp_path)


@pytest.mark.nightly("long")
def test_prometheus_does_not_fire_just_below_the_threshold(tmp_path: Path) -> None:
    for trial in trials.ALL:
        course = trial.calm_course
        write(tmp_path / f"{trial.id}.yml", trial.rule.name, trial.lines(course, trial.under), course, trial.step_seconds)
    check(tmp_path)


def test_prometheus_always_fires_the_watchdog(tmp_path: Path) -> None:
    assert write(tmp_path / "test.yml", "watchdog", [], Course(1, 1, 1), 60) == 3
    check(tmp_path)


def test_promtool_detects_a_difference(tmp_path: Path) -> None:
    """promtool must not accept everything: the same series under another name give another result."""
    [trial] = [trial for trial in trials.ALL if trial.rule.name == "queue_depth_high"]
    lines = [Line(line.name.replace("queue_depth", "queue"), line.labels, line.values) for line in trial.lines(trial.course, trial.over)]
    path = tmp_path / "test.yml"
    assert write(path, "queue_depth_high", lines, trial.course, trial.step_seconds) == 0
    check(tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("ai_platform_queue{", "ai_platform_queue_depth{"), encoding="utf-8")
    with pytest.raises(AssertionError, match="queue_depth_high"):
        check(tmp_path)
