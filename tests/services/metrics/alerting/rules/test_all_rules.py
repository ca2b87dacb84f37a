"""Every alert rule uses existing metrics, fires, does not fire just below its threshold, and resolves."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.metrics.alerting.rules import all_rules, expressions, objectives, promql
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.export import prometheus_merge
from shared.telemetry import instruments
from shared.telemetry.instrument import Instrument, InstrumentKind
from shared.telemetry.metrics_registry import Metrics
from shared.types import SERVICE_NAMES
from tests.cases import case
from tests.services.metrics.alerting.rules import trials
from tests.services.metrics.alerting.rules.series import firing, watch
from tests.services.metrics.alerting.rules.trials import Course, Trial


def selectors_of(expression: expressions.Expression) -> list[expressions.Selector]:
    kinds = expressions.Latest | expressions.Increase | expressions.Absent
    return [part.of for part in expressions.walk(expression) if isinstance(part, kinds)]


def label_names_of(rule: AlertRule) -> set[str]:
    """Return the labels of its alerts, besides name and severity."""
    return {*expressions.labels_of(rule.when), *(label for label, _ in rule.labels)}


SELECTORS = sorted(
    {selector for rule in all_rules.ALL for selector in selectors_of(rule.when)},
    key=lambda selector: promql.render(expressions.Latest(selector)),
)
EVERY = [pytest.param(trial, id=trial.id) for trial in trials.ALL]
#: Labels that the metrics service adds; a node's own label of that name is renamed.
ADDED_LABELS = {"service", "node"}


def series_of(instrument: Instrument) -> set[str]:
    suffixes = ("_bucket", "_count", "_sum") if instrument.kind is InstrumentKind.HISTOGRAM else ("",)
    return {instrument.name + suffix for suffix in suffixes}


def labels_of(instrument: Instrument) -> set[str]:
    moved = {f"exported_{label}" for label in ADDED_LABELS & set(instrument.labels)}
    return {*instrument.labels, *ADDED_LABELS, *moved, *(("le",) if instrument.kind is InstrumentKind.HISTOGRAM else ())}


def test_the_metric_of_every_rule_exists() -> None:
    for selector in SELECTORS:
        with case(promql.render(expressions.Latest(selector))):
            assert selector.instrument in instruments.ALL
            assert selector.name in series_of(selector.instrument)
            selected = {label for label, _ in (*selector.where, *selector.without)}
            assert selected <= labels_of(selector.instrument)
            for values in (values for label, values in (*selector.where, *selector.without) if label == "service"):
                assert set(values) <= set(SERVICE_NAMES.values())
            bounds = {f"{float(bound)!s}" for bound in selector.instrument.buckets}
            assert all(bound in bounds for label, values in selector.where if label == "le" for bound in values)


def test_every_grouping_label_exists_on_the_grouped_series() -> None:
    for rule in all_rules.ALL:
        with case((rule.name, rule.labels)):
            for part in expressions.walk(rule.when):
                if isinstance(part, expressions.Aggregate):
                    known = set.intersection(*(labels_of(selector.instrument) for selector in selectors_of(part)))
                    assert set(part.by) <= known


def test_texts_only_use_labels_of_their_alert() -> None:
    for rule in all_rules.ALL:
        with case((rule.name, rule.labels)):
            assert re.fullmatch(r"[a-z][a-z_]*", rule.name)
            named = set(re.findall(r"\{(\w+)\}", rule.summary + rule.description))
            assert named <= label_names_of(rule)
            assert rule.summary
            assert not rule.summary.endswith(".")
            assert rule.description.endswith(".")


def test_both_sides_of_a_condition_have_the_same_labels() -> None:
    for rule in all_rules.ALL:
        for part in expressions.walk(rule.when):
            if isinstance(part, expressions.Both | expressions.Unless | expressions.Ratio):
                assert len({expressions.labels_of(side) for side in expressions.parts_of(part)}) == 1


def test_no_two_rules_create_the_same_alert() -> None:
    keys = [(rule.name, rule.labels) for rule in all_rules.ALL]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("no_worker", 4, ""),
        ("worker_crash_loop", 3, "3"),
        ("settle_journal_long", 12_345, "12,345"),
        ("cpu_high", 0.972, "97.2 %"),
        ("availability_burn", 0.00155, "0.155 %"),
        ("response_slow", 0.25, "250 ms"),
        ("response_slow", 7.129, "7.13 s"),
        ("revocation_list_old", 660, "11 min"),
        ("certificate_expiring", 19_000, "5.3 h"),
        ("cost_anomaly", 1.8, "1.8 times as much"),
        ("ledger_drift", -3, "-3 micro-credits"),
    ],
)
def test_values_are_shown_with_their_unit(name: str, value: float, shown: str) -> None:
    rule = next(rule for rule in all_rules.ALL if rule.name == name)
    assert rule.shown(value) == shown


def test_each_recorded_name_has_one_expression() -> None:
    names = [recording.name for recording in all_rules.RECORDINGS]
    assert len(names) == len(set(names))
    windows = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
    assert {f"ai_platform:requests:error_ratio_rate{window}" for window in windows} <= set(names)


def test_thresholds_match_the_specification() -> None:
    wanted = {
        "high_latency": ("warning", "> 1)"),
        "error_rate_spike": ("critical", "> 0.05)"),
        "gpu_saturation": ("warning", "> 0.9"),
        "cost_anomaly": ("warning", "> 1.5)"),
        "queue_depth_high": ("warning", "> 100"),
        "cpu_high": ("warning", "> 0.8"),
        "response_slow": ("critical", "> 5"),
    }
    found = {rule.name: rule for rule in all_rules.ALL if rule.name in wanted}
    assert {name: rule.severity.value for name, rule in found.items()} == {name: severity for name, (severity, _) in wanted.items()}
    assert all(threshold in promql.render(found[name].when) for name, (_, threshold) in wanted.items())
    assert found["gpu_saturation"].hold_seconds == found["cpu_high"].hold_seconds == 600
    assert [one.target for one in objectives.OBJECTIVES] == [0.999, 0.9995, 0.95]


def test_every_rule_is_tested() -> None:
    tried = {trial.id for trial in trials.ALL}
    assert tried == {"-".join((rule.name, *(value for _, value in rule.labels))) for rule in all_rules.ALL if rule.name != "watchdog"}


@pytest.mark.parametrize("trial", EVERY)
def test_rule_fires_and_resolves(trial: Trial) -> None:
    course = trial.course
    seen = watch(trial.rule, trial.lines(course, trial.over), trial.step_seconds, course.steps)
    assert not firing(seen[course.quiet - 1])
    [key] = firing(seen[course.quiet + course.trouble - 1])
    assert {label for label, _ in key} == label_names_of(trial.rule)
    assert not firing(seen[-1])


@pytest.mark.parametrize("trial", EVERY)
def test_rule_does_not_fire_just_below_its_threshold(trial: Trial) -> None:
    course = trial.calm_course
    seen = watch(trial.rule, trial.lines(course, trial.under), trial.step_seconds, course.steps)
    assert not [at for at, alerts in enumerate(seen) if firing(alerts)]


def test_alert_stays_pending_for_the_hold_time_of_its_rule() -> None:
    [trial] = [trial for trial in trials.ALL if trial.rule.name == "gpu_saturation"]
    seen = watch(trial.rule, trial.lines(trial.course, trial.over), trial.step_seconds, trial.course.steps)
    first = next(at for at, alerts in enumerate(seen) if alerts)
    assert next(at for at, alerts in enumerate(seen) if firing(alerts)) - first == 10
    [alert] = seen[first + 10].values()
    assert (alert.since, alert.value) == (first * 60, 0.91)


def test_watchdog_always_fires() -> None:
    [rule] = [rule for rule in all_rules.ALL if rule.name == "watchdog"]
    assert all(firing(alerts) == {()} for alerts in watch(rule, [], 60, 3))


def test_few_failures_among_few_requests_raise_no_alert() -> None:
    [trial] = [trial for trial in trials.BURNING if trial.id == "availability_burn-1h"]
    status = instruments.COMPLETED_REQUESTS
    course = Course(10, 60, 10)
    lines = [
        trials.line(status, course.counter(0.5, 0.5), status="success", service="metrics", node="m", model="llama3"),
        trials.line(status, course.counter(0, 0.3), status="error", service="metrics", node="m", model="llama3"),
    ]
    assert not any(watch(trial.rule, lines, 60, course.steps))


def test_five_day_old_mesh_has_no_cost_anomaly() -> None:
    [trial] = [trial for trial in trials.ALL if trial.rule.name == "cost_anomaly"]
    course = Course(5 * 24, 24, 1)
    assert not any(watch(trial.rule, trial.lines(course, 100), 3600, course.steps))


def test_rule_labels_exist_in_real_metrics() -> None:
    """A gateway reports about another node, its worker. A method's service is the service that serves the method."""
    gateway = Metrics("gateway")
    gateway.wrong_counts.labels(node="w").inc()
    gateway.requests.labels(service="gateway", method="chat", status="success").inc()
    gateway.ttft_seconds.labels(model="llama3").observe(1)
    text = prometheus_merge.render(
        prometheus_merge.Merger().merge([prometheus_merge.MetricSource(gateway.render(), {"service": "gateway", "node": "g"})])
    )
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {sample.name: sample.labels for sample in samples}
    assert found["ai_platform_wrong_counts_total"] == {"service": "gateway", "node": "g", "exported_node": "w"}
    assert found["ai_platform_requests_total"] == {"service": "gateway", "node": "g", "method": "chat", "status": "success"}
    buckets = [sample.labels for sample in samples if sample.name == "ai_platform_ttft_seconds_bucket"]
    assert {"service": "gateway", "node": "g", "model": "llama3", "le": objectives.FIRST_TOKEN_BOUND} in buckets
