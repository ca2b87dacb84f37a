"""Evaluate expressions and alert rules over collected samples, with the semantics of Prometheus. Pure.

A comparison keeps the series for which it is true, and is false for NaN. An alert fires once its condition held at every evaluation for
the time in the rule. Tests compare the results with Prometheus on the same series.
"""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, assert_never

from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.expressions import (
    Absent,
    Aggregate,
    Always,
    Both,
    Compared,
    Comparison,
    Complement,
    Expression,
    Fold,
    Increase,
    Latest,
    Leaf,
    OfOne,
    OfTwo,
    Quantile,
    Ratio,
    RecordedSeries,
    Selector,
    TimeWindow,
    Unless,
)

#: Sorted by name, without empty ones.
Labels: TypeAlias = tuple[tuple[str, str], ...]
Vector: TypeAlias = Mapping[Labels, float]

_FOLDS: Mapping[Fold, Callable[[Iterable[float]], float]] = {Fold.SUM: math.fsum, Fold.MAX: max, Fold.MIN: min}
_HOLDS: Mapping[Comparison, Callable[[float, float], bool]] = {
    Comparison.ABOVE: operator.gt,
    Comparison.AT_LEAST: operator.ge,
    Comparison.BELOW: operator.lt,
    Comparison.EQUAL: operator.eq,
    Comparison.OTHER_THAN: operator.ne,
}


class MetricReadings(Protocol):
    """The metrics at one moment. Never blocks."""

    def latest(self, selector: Selector) -> Vector:
        """Return the newest values of existing series, by all labels."""
        ...

    def increase(self, selector: Selector, window: TimeWindow) -> Vector:
        """Return the increase of each counter seen in the window. After a reset, counters increase from 0."""
        ...


@dataclass(frozen=True, slots=True)
class Active:
    """A rule that holds for one set of labels."""

    since: float
    #: The value of the first condition at the last evaluation.
    value: float
    firing: bool


def labels(**pairs: str) -> Labels:
    return tuple(sorted((label, value) for label, value in pairs.items() if value))


def advance(rule: AlertRule, readings: MetricReadings, before: Mapping[Labels, Active], now: float) -> dict[Labels, Active]:
    """Return the alerts of one rule at ``now``; missing ones were resolved. ``before`` is the previous result."""
    found = {}
    for own, value in evaluate(rule.when, readings).items():
        key = tuple(sorted({**dict(own), **dict(rule.labels)}.items()))
        since = before[key].since if key in before else now
        found[key] = Active(since, value, firing=now - since >= rule.hold_seconds)
    return found


def evaluate(expression: Expression, readings: MetricReadings) -> Vector:
    if isinstance(expression, Leaf):
        return _leaf(expression, readings)
    if isinstance(expression, OfTwo):
        return _of_two(expression, readings)
    return _of_one(expression, evaluate(expression.of, readings))


def _leaf(expression: Leaf, readings: MetricReadings) -> Vector:
    match expression:
        case Latest(selector):
            return readings.latest(selector)
        case Increase(selector, window):
            return readings.increase(selector, window)
        case Absent(selector):
            return {} if readings.latest(selector) else {expression.labels: 1.0}
        case Always():
            return {(): 1.0}
        case _:
            assert_never(expression)


def _of_one(expression: OfOne, vector: Vector) -> Vector:
    match expression:
        case Aggregate(fold, by, _):
            return _aggregate(fold, by, vector)
        case Quantile(share, _):
            return _quantile(share, vector)
        case Complement():
            return {key: 1 - value for key, value in vector.items()}
        case Compared(_, how, threshold):
            return {key: value for key, value in vector.items() if _HOLDS[how](value, threshold)}
        case RecordedSeries():
            return vector
        case _:
            assert_never(expression)


def _of_two(expression: OfTwo, readings: MetricReadings) -> Vector:
    match expression:
        case Ratio(over, under):
            return _ratio(evaluate(over, readings), under if isinstance(under, float | int) else evaluate(under, readings))
        case Both(first, second):
            kept = evaluate(second, readings)
            return {key: value for key, value in evaluate(first, readings).items() if key in kept}
        case Unless(first, second):
            left_out = evaluate(second, readings)
            return {key: value for key, value in evaluate(first, readings).items() if key not in left_out}
        case _:
            assert_never(expression)


def _aggregate(fold: Fold, by: tuple[str, ...], vector: Vector) -> Vector:
    groups: dict[Labels, list[float]] = defaultdict(list)
    for key, value in vector.items():
        groups[tuple(pair for pair in key if pair[0] in by)].append(value)
    return {key: _FOLDS[fold](values) for key, values in groups.items()}


def _ratio(over: Vector, under: Vector | float) -> Vector:
    if isinstance(under, float | int):
        return {key: _divide(value, under) for key, value in over.items()}
    return {key: _divide(value, under[key]) for key, value in over.items() if key in under}


def _divide(over: float, under: float) -> float:
    """Divide as IEEE 754 and PromQL do; Python would raise."""
    if under:
        return over / under
    return math.copysign(math.inf, over) if over else math.nan


def _quantile(share: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for key, count in buckets.items():
        bound = dict(key).get("le", "")
        groups[tuple(pair for pair in key if pair[0] != "le")].append((float(bound or "nan"), count))
    return {key: quantile_of(share, sorted(found)) for key, found in groups.items()}


def quantile_of(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """Interpolate within cumulative buckets, sorted by their bounds; above the last finite bound, return that. NaN without values."""
    most = buckets[-1][1]
    if buckets[-1][0] != math.inf or len(buckets) < 2 or most <= 0:
        return math.nan
    rank = share * most
    at = next(index for index, (_, count) in enumerate(buckets) if count >= rank)
    if at == len(buckets) - 1:
        return buckets[-2][0]
    bound, count = buckets[at]
    start, before = buckets[at - 1] if at else (0.0, 0.0)
    return start + (bound - start) * (rank - before) / (count - before)
