"""The thresholds find what the alert rules of the same name find, on the same series; and growth survives restarts and gaps."""

import re

import pytest

from services.metrics.alerting import rules
from services.metrics.alerting.thresholds import THRESHOLDS, CollectionWindow
from services.metrics.history.samples import Labels, Sample
from tests.cases import case
from tests.services.metrics.alerting import rule_cases
from tests.services.metrics.alerting.rule_cases import RuleCase

ALERTS = {threshold.name: threshold for threshold in THRESHOLDS}
CASES = [each for each in rule_cases.load() if each.alert in ALERTS]
REQUESTS = "ai_platform_requests_total"


@pytest.mark.parametrize("trial", CASES, ids=lambda trial: trial.name)
def test_thresholds_fire_and_resolve_as_the_rules_do(trial: RuleCase) -> None:
    threshold, window = ALERTS[trial.alert], CollectionWindow()
    hold = next(rule.hold_seconds for rule in rules.load() if rule.name == trial.alert)
    since: dict[Labels, int] = {}
    fired: list[set[Labels]] = []
    for step in range(trial.steps):
        now = step * trial.step_seconds
        reached = threshold.reached(window.take(trial.samples(step), now))
        since = {labels: since.get(labels, now) for labels in reached}
        fired.append({labels for labels, began in since.items() if now - began >= hold})
    # A series about another service or server is the case of another rule with this name.
    meant = [{labels for labels in each if trial.fires is None or labels == trial.fires} for each in fired]
    if trial.fires is None:
        assert not any(meant)
    else:
        assert any(meant)
        assert not meant[0]
        assert not meant[-1]


def test_every_threshold_has_a_case_for_both_sides() -> None:
    assert {each.alert for each in CASES if each.fires is not None} == set(ALERTS)
    assert {each.alert for each in CASES if each.fires is None} == set(ALERTS)


def test_numbers_are_those_of_the_rules() -> None:
    found = {rule.name: rule for rule in rules.load() if rule.name in ALERTS}
    for name, threshold in ALERTS.items():
        with case(name):
            numbers = {float(number) for number in re.findall(r"[<>!]=? ([\d.]+)", found[name].expression)}
            assert threshold.bound in numbers or (name in ("service_down", "no_worker") and threshold.bound == 1)


def test_the_seven_of_the_documents_have_their_numbers_and_severities() -> None:
    wanted = {
        "cpu_high": ("warning", 0.8),
        "queue_depth_high": ("warning", 100),
        "response_slow": ("critical", 5),
        "high_latency": ("warning", 1),
        "error_rate_spike": ("critical", 0.05),
        "gpu_saturation": ("warning", 0.9),
        "cost_anomaly": ("warning", 1.5),
    }
    severities = {rule.name: rule.severity for rule in rules.load()}
    assert {name: (severities[name], ALERTS[name].bound) for name in wanted} == wanted


def calls(failed: float, succeeded: float = 100.0, node: str = "g") -> list[Sample]:
    where = (("node", node), ("service", "gateway"))
    return [
        Sample(REQUESTS, tuple(sorted((*where, ("status", "unavailable")))), failed),
        Sample(REQUESTS, tuple(sorted((*where, ("status", "success")))), succeeded),
    ]


def growth(window: CollectionWindow, samples: list[Sample], now: float) -> dict[str, float] | None:
    found = window.take(samples, now).growth.get(REQUESTS)
    return None if found is None else {dict(labels)["status"]: value for labels, value in found.items()}


def test_growth_is_unknown_for_five_minutes_and_then_of_five_minutes() -> None:
    window = CollectionWindow()
    assert [growth(window, calls(n), 15.0 * n) for n in (0, 10, 19)] == [None] * 3
    assert growth(window, calls(20), 300) == {"unavailable": 20, "success": 0}
    assert growth(window, calls(40), 450) == {"unavailable": 30, "success": 0}


def test_each_counter_has_the_window_of_its_rule() -> None:
    window = CollectionWindow()
    known = [sorted(window.take([], 60.0 * minute).growth) for minute in range(16)]
    for counter in (each.counter for each in THRESHOLDS if each.counter is not None):
        assert [counter.name in names for names in known] == [60.0 * minute >= counter.seconds for minute in range(16)]
    assert [REQUESTS in names for names in known] == [False] * 5 + [True] * 11


def test_restart_counts_from_0_and_a_gap_or_a_new_node_counts_nothing() -> None:
    window = CollectionWindow()
    window.take(calls(50), 0)
    # The node restarts, and another one joins with a long history.
    window.take([*calls(3), *calls(1000, node="h")], 15)
    window.take(calls(5), 30)
    assert growth(window, [*calls(5), *calls(1002, node="h")], 300) == {"unavailable": 7, "success": 0}
