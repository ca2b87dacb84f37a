"""Values of expressions where PromQL and plain arithmetic differ. test_promtool.py checks every rule against Prometheus."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metrics.alerting.rules import evaluation, expressions, promql
from services.metrics.alerting.rules.alert_rule import AlertRule, DashboardName, Severity
from services.metrics.alerting.rules.evaluation import Active, Vector, advance, evaluate, labels
from services.metrics.alerting.rules.expressions import (
    Absent,
    Aggregate,
    Always,
    Both,
    Complement,
    Expression,
    Fold,
    Increase,
    Latest,
    Quantile,
    Ratio,
    RecordedSeries,
    Selector,
    TimeWindow,
    Unless,
    above,
    at_least,
    below,
    highest,
    series,
    total,
)
from shared.telemetry import instruments

DEPTH = Selector(instruments.QUEUE_DEPTH)
CALLS = Selector(instruments.REQUESTS)


class FakeReadings:
    """Readings by name; selectors have their own tests."""

    def __init__(self, **vectors: Vector) -> None:
        self._vectors = vectors

    def latest(self, selector: Selector) -> Vector:
        return self._vectors.get("latest", {})

    def increase(self, selector: Selector, window: TimeWindow) -> Vector:
        return self._vectors.get("increase", {})


A, B = labels(model="a"), labels(model="b")
BY_MODEL = Aggregate(Fold.SUM, ("model",), Latest(DEPTH))
GROWN = Aggregate(Fold.SUM, ("model",), Increase(CALLS, TimeWindow(300)))


@pytest.mark.parametrize(
    ("expression", "worth"),
    [
        pytest.param(total(DEPTH, "model"), {A: 3.0, B: 0.0}, id="grouped"),
        pytest.param(total(DEPTH), {(): 3.0}, id="all together"),
        pytest.param(Aggregate(Fold.MIN, (), Latest(DEPTH)), {(): 0.0}, id="the lowest"),
        pytest.param(highest(DEPTH, "node"), {labels(node="x"): 2.0, labels(node="y"): 1.0}, id="the highest of each"),
        pytest.param(above(BY_MODEL, 2), {A: 3.0}, id="only what is above"),
        pytest.param(at_least(BY_MODEL, 3), {A: 3.0}, id="at least"),
        pytest.param(below(BY_MODEL, 3), {B: 0.0}, id="below, and the value stays"),
        pytest.param(Both(BY_MODEL, above(BY_MODEL, 2)), {A: 3.0}, id="both"),
        pytest.param(Unless(BY_MODEL, above(BY_MODEL, 2)), {B: 0.0}, id="unless"),
        pytest.param(Complement(BY_MODEL), {A: -2.0, B: 1.0}, id="what is left to 1"),
        pytest.param(Ratio(BY_MODEL, 2), {A: 1.5, B: 0.0}, id="over a number"),
        pytest.param(Ratio(BY_MODEL, GROWN), {A: math.inf}, id="over nothing; and the other side lacks b"),
        pytest.param(above(Ratio(GROWN, GROWN), -1), {}, id="nothing over nothing is true of nothing"),
        pytest.param(Absent(DEPTH), {}, id="not absent"),
        pytest.param(Absent(series(instruments.REQUESTS, service="auth")), {}, id="nor this"),
        pytest.param(RecordedSeries("ai_platform:x", BY_MODEL), {A: 3.0, B: 0.0}, id="recorded is what it is of"),
        pytest.param(Always(), {(): 1.0}, id="always"),
    ],
)
def test_evaluate(expression: Expression, worth: Vector) -> None:
    readings = FakeReadings(
        latest={labels(model="a", node="x"): 2.0, labels(model="a", node="y"): 1.0, labels(model="b", node="x"): 0.0},
        increase={labels(model="a", node="x"): 0.0},
    )
    assert evaluate(expression, readings) == worth


def test_absent_returns_the_labels_of_its_selector() -> None:
    assert evaluate(Absent(series(instruments.REQUESTS, service="auth", status=("success", "internal"))), FakeReadings()) == {
        labels(service="auth"): 1.0
    }


@pytest.mark.parametrize(
    ("share", "buckets", "worth"),
    [
        pytest.param(0.5, {"1": 10, "2": 10, "+Inf": 10}, 0.5, id="evenly within the first bucket"),
        pytest.param(0.75, {"1": 5, "2": 10, "+Inf": 10}, 1.5, id="within the second"),
        pytest.param(0.95, {"1": 5, "2": 6, "+Inf": 10}, 2.0, id="beyond the last bound"),
        pytest.param(0.95, {"1": 0, "+Inf": 0}, math.nan, id="nothing was measured"),
        pytest.param(0.95, {"1": 5, "2": 10}, math.nan, id="no bucket for the rest"),
    ],
)
def test_quantile_stays_within_its_bucket(share: float, buckets: dict[str, float], worth: float) -> None:
    readings = FakeReadings(latest={labels(le=bound, service="web"): count for bound, count in buckets.items()})
    [(key, found)] = evaluate(Quantile(share, Aggregate(Fold.SUM, ("service", "le"), Latest(DEPTH))), readings).items()
    assert key == labels(service="web")
    assert found == pytest.approx(worth, nan_ok=True)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.floats(allow_nan=True, allow_infinity=True), max_size=8), st.floats(allow_nan=False))
def test_condition_and_its_complement_cover_all_series(values: dict[str, float], threshold: float) -> None:
    readings = FakeReadings(latest={labels(model=name): value for name, value in values.items()})
    condition = above(BY_MODEL, threshold)
    holds, rest = evaluate(condition, readings), evaluate(Unless(BY_MODEL, condition), readings)
    assert holds.keys() | rest.keys() == evaluate(BY_MODEL, readings).keys()
    assert not holds.keys() & rest.keys()
    assert evaluate(Both(condition, BY_MODEL), readings) == holds


def rule(hold_seconds: int) -> AlertRule:
    return AlertRule(
        name="deep",
        severity=Severity.PAGE,
        when=above(BY_MODEL, 1),
        hold_seconds=hold_seconds,
        summary="deep",
        description="Deep.",
        board=DashboardName.GATEWAY,
        labels=(("window", "1h"),),
    )


def test_alert_that_stops_before_its_hold_time_starts_over() -> None:
    deep, shallow = FakeReadings(latest={A: 2.0}), FakeReadings(latest={A: 1.0})
    key = labels(model="a", window="1h")
    at = advance(rule(60), deep, {}, 100)
    assert at == {key: Active(100, 2.0, firing=False)}
    assert advance(rule(60), deep, at, 159.9)[key].firing is False
    assert advance(rule(60), deep, at, 160) == {key: Active(100, 2.0, firing=True)}
    assert advance(rule(60), shallow, at, 130) == {}
    assert advance(rule(60), deep, {}, 160)[key] == Active(160, 2.0, firing=False)
    assert advance(rule(0), deep, {}, 100)[key].firing


def test_each_label_set_is_its_own_alert() -> None:
    first = advance(rule(60), FakeReadings(latest={A: 2.0}), {}, 0)
    both = advance(rule(60), FakeReadings(latest={A: 2.0, B: 3.0}), first, 60)
    assert {dict(key)["model"]: alert.firing for key, alert in both.items()} == {"a": True, "b": False}


def test_ungrouped_expressions_are_refused_where_labels_matter() -> None:
    with pytest.raises(ValueError, match="not aggregated"):
        expressions.labels_of(above(Latest(DEPTH), 1))
    with pytest.raises(ValueError, match="is not a histogram"):
        expressions.quantile(0.5, DEPTH, 60)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (Ratio(above(BY_MODEL, 0.1 + 0.2), 7), "(sum by (model) (ai_platform_queue_depth) > 0.3) / 7"),
        (Increase(CALLS, TimeWindow(5400, 86400)), "increase(ai_platform_requests_total[90m] offset 1d)"),
        (
            Latest(Selector(instruments.REQUESTS, (("status", ("a", "b")),), (("method", ("x",)), ("service", ("y", "z"))))),
            'ai_platform_requests_total{status=~"a|b", method!="x", service!~"y|z"}',
        ),
        (
            Both(Unless(Always(), BY_MODEL), Absent(DEPTH)),
            "(vector(1) unless sum by (model) (ai_platform_queue_depth)) and absent(ai_platform_queue_depth)",
        ),
    ],
)
def test_render_promql(expression: Expression, text: str) -> None:
    assert promql.render(expression) == text


def test_empty_labels_are_treated_as_absent() -> None:
    assert evaluation.labels(model="", service="web") == (("service", "web"),)
