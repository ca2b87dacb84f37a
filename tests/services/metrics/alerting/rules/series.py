"""Series in memory: readings for the evaluator, and its results over time."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from services.metrics.alerting.rules import evaluation
from services.metrics.alerting.rules.alert_rule import AlertRule
from services.metrics.alerting.rules.evaluation import Active, Labels, Vector
from services.metrics.alerting.rules.expressions import Selector, TimeWindow
from tests.services.metrics.alerting.rules.trials import Line


@dataclass(frozen=True, slots=True)
class Seen:
    """``MetricReadings`` of samples that come every ``step_seconds``, read right after one of them."""

    lines: Sequence[Line]
    step_seconds: int
    at: int
    #: Extrapolate to the edges of the window, as Prometheus does.
    like_prometheus: bool = False

    def latest(self, selector: Selector) -> Vector:
        found = ((line, line.values[self.at]) for line in self.lines if _meant(line, selector))
        return {_key(line): value for line, value in found if value is not None}

    def increase(self, selector: Selector, window: TimeWindow) -> Vector:
        last = self.at - window.ago_seconds // self.step_seconds
        first = last - window.seconds // self.step_seconds
        found = {}
        for line in self.lines:
            samples = [(at, value) for at, value in enumerate(line.values) if first <= at <= last and value is not None]
            if _meant(line, selector) and len(samples) > 1:
                found[_key(line)] = _growth([value for _, value in samples]) * (
                    _extrapolation(samples, first, last) if self.like_prometheus else 1
                )
        return found


def _growth(values: Sequence[float]) -> float:
    return sum(after - before if after >= before else after for before, after in itertools.pairwise(values))


def _extrapolation(samples: Sequence[tuple[int, float]], first: int, last: int) -> float:
    """Return the factor of extrapolatedRate in Prometheus' promql/functions.go: extrapolate to the edge of the window if it is near, else
    by half a step, and never to before a counter would have been 0."""
    (start, value), (end, _) = samples[0], samples[-1]
    covered = end - start
    step = covered / (len(samples) - 1)
    growth = _growth([value for _, value in samples])
    before: float = start - first
    if growth > 0:
        before = min(before, covered * value / growth)
    after = last - end
    return (covered + sum(gap if gap < step * 1.1 else step / 2 for gap in (before, after))) / covered


def _meant(line: Line, selector: Selector) -> bool:
    has = dict(line.labels)
    return (
        line.name == selector.name
        and all(has.get(label, "") in values for label, values in selector.where)
        and all(has.get(label, "") not in values for label, values in selector.without)
    )


def _key(line: Line) -> Labels:
    return evaluation.labels(**dict(line.labels))


def watch(
    rule: AlertRule, lines: Sequence[Line], step_seconds: int, steps: int, *, like_prometheus: bool = False
) -> list[dict[Labels, Active]]:
    """Return the rule's alerts after each step."""
    seen: list[dict[Labels, Active]] = []
    active: dict[Labels, Active] = {}
    for at in range(steps):
        active = evaluation.advance(rule, Seen(lines, step_seconds, at, like_prometheus), active, at * step_seconds)
        seen.append(active)
    return seen


def firing(alerts: dict[Labels, Active]) -> set[Labels]:
    return {key for key, alert in alerts.items() if alert.firing}
