"""Works out expressions over what the service itself has seen, and which alerts hold. Pure.

It means what Prometheus means by the same rule: a comparison keeps what it is true for, nothing over nothing (NaN) is true of
nothing, and an alert fires when its condition held at every look for as long as the rule says. The tests run both on the same
series and compare.
"""

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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

#: By name; without those that are empty.
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
    """What is known of the metrics at one moment. Neither method blocks."""

    def latest(self, selector: Selector) -> Vector:
        """The newest values, by all labels of the series; without series that are gone."""
        ...

    def increase(self, selector: Selector, window: TimeWindow) -> Vector:
        """How much each counter grew within the window, with resets counted as growth from 0; without those that were not seen in it."""
        ...


@dataclass(frozen=True, slots=True)
class Active:
    """One alert: a rule that holds for one set of labels."""

    #: When its condition was first seen, in the clock of the caller.
    since: float
    #: Of its first condition, at the last look.
    value: float
    #: False while it has not held for long enough.
    firing: bool


def labels(**pairs: str) -> Labels:
    return tuple(sorted((label, value) for label, value in pairs.items() if value))


def advance(rule: AlertRule, readings: MetricReadings, before: Mapping[Labels, Active], now: float) -> dict[Labels, Active]:
    """The alerts of one rule after a look at ``now``; what is not among them any more is over. ``before`` is the last answer."""
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
    """As IEEE 754 and PromQL have it; Python would raise."""
    if under:
        return over / under
    return math.copysign(math.inf, over) if over else math.nan


def _quantile(share: float, buckets: Vector) -> Vector:
    groups: dict[Labels, list[tuple[float, float]]] = defaultdict(list)
    for key, count in buckets.items():
        bound = dict(key).get("le", "")
        groups[tuple(pair for pair in key if pair[0] != "le")].append((float(bound or "nan"), count))
    return {key: _quantile_of(share, sorted(found)) for key, found in groups.items()}


def _quantile_of(share: float, buckets: list[tuple[float, float]]) -> float:
    """Within its bucket the quantile lies as if the values were spread evenly; beyond the last bound it is that bound."""
    most = buckets[-1][1]
    if buckets[-1][0] != math.inf or len(buckets) < 2 or not most:
        return math.nan
    rank = share * most
    at = next(index for index, (_, count) in enumerate(buckets) if count >= rank)
    if at == len(buckets) - 1:
        return buckets[-2][0]
    bound, count = buckets[at]
    start, before = buckets[at - 1] if at else (0.0, 0.0)
    return start + (bound - start) * (rank - before) / (count - before)
