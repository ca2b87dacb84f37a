"""Turn stored points into the lines of a response. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from services.metrics.export import series
from services.metrics.history import kept_series, rollup
from services.metrics.history.query_plan import HistoryRequest, QueryPlan
from services.metrics.history.samples import Labels
from shared import errors
from shared.api import metrics as api
from shared.api.metrics import HistoryGrouping, HistoryLine

_BOUND: Final = "le"
_MACHINE: Final = "machine"


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """One series at one step."""

    #: Empty if all services are summed; the same for ``node``.
    service: str
    node: str
    #: As in a layout.
    name: str
    step: int
    #: The increase over all nodes; meaningless for a gauge.
    growth: float
    #: The sum of the nodes' means; meaningless for a counter.
    mean: float
    nodes: int
    peak: float


@dataclass(slots=True)
class _Sum:
    total: float = 0.0
    nodes: int = 0
    peak: float = -math.inf

    def add(self, point: StoredPoint, *, grows: bool) -> None:
        self.total += point.growth if grows else point.mean
        self.nodes += point.nodes
        self.peak = max(self.peak, point.peak)


def draw(
    question: QueryPlan, by: Sequence[HistoryGrouping], points: Iterable[StoredPoint], covered: Mapping[int, float]
) -> tuple[HistoryLine, ...]:
    """Return the lines. ``covered`` has the observed seconds per step. Raises BadRequest for too many lines."""
    grouped: dict[str, dict[Labels, dict[int, _Sum]]] = {}
    found: dict[tuple[str, str, str], tuple[dict[int, _Sum], bool]] = {}
    for point in points:
        of_point = (point.name, point.service, point.node)
        if of_point not in found:
            name, key = _line_of(point, by)
            found[of_point] = grouped.setdefault(name, {}).setdefault(key, {}), kept_series.is_counter(name)
        steps, grows = found[of_point]
        steps.setdefault(point.step, _Sum()).add(point, grows=grows)
    seconds = [_seconds(question, step, covered) for step in range(question.steps)]
    lines = [line for wanted in question.wanted for line in _of_name(wanted, seconds, grouped.get(wanted.name, {}))]
    if len(lines) > api.MAX_LINES:
        hint = "request fewer names, or fewer groupings in `by`"
        raise errors.BadRequest(f"by: the response would have {len(lines)} lines; the limit is {api.MAX_LINES}", hint=hint)
    return tuple(lines)


def _line_of(point: StoredPoint, by: Sequence[HistoryGrouping]) -> tuple[str, Labels]:
    head = series.parse_head(point.name)
    name, own = ("", {}) if head is None else (head.name, head.labels)
    labels = {**own, HistoryGrouping.SERVICE.value: point.service, HistoryGrouping.NODE.value: point.node}
    # A sum over nodes has no machine.
    left_out = {*(set(HistoryGrouping) - set(by)), *(() if HistoryGrouping.NODE in by else (_MACHINE,))}
    return name, tuple(sorted((label, value) for label, value in labels.items() if label not in left_out))


def _of_name(wanted: HistoryRequest, seconds: Sequence[float], found: Mapping[Labels, Mapping[int, _Sum]]) -> list[HistoryLine]:
    if wanted.quantile is not None:
        return _quantiles(wanted, wanted.quantile, len(seconds), found)
    return [
        _line(wanted, labels, [_value(wanted, sums.get(step), each) for step, each in enumerate(seconds)])
        for labels, sums in sorted(found.items())
    ]


def _line(wanted: HistoryRequest, labels: Labels, values: Sequence[float | None]) -> HistoryLine:
    return HistoryLine(wanted.requested, {name: series.unescape(value) for name, value in labels}, tuple(values))


def _value(wanted: HistoryRequest, found: _Sum | None, seconds: float) -> float | None:
    if found is None:
        return None
    if wanted.highest:
        return found.peak / rollup.RAW if kept_series.is_counter(wanted.name) else found.peak
    if wanted.is_divided:
        return found.total / seconds
    return found.total / found.nodes if kept_series.is_share(wanted.name) else found.total


def _seconds(question: QueryPlan, step: int, covered: Mapping[int, float]) -> float:
    """Return the observed seconds of a step, which may be partial; if unknown, its length until now."""
    left = (question.until - question.since).total_seconds() - step * question.step_seconds
    return covered.get(step) or min(question.step_seconds, max(rollup.RAW, left))


def _quantiles(wanted: HistoryRequest, share: float, steps: int, found: Mapping[Labels, Mapping[int, _Sum]]) -> list[HistoryLine]:
    groups: dict[Labels, dict[float, Mapping[int, _Sum]]] = {}
    for labels, sums in found.items():
        bound = float(dict(labels).get(_BOUND, "nan"))
        groups.setdefault(tuple(pair for pair in labels if pair[0] != _BOUND), {})[bound] = sums
    return [
        _line(wanted, labels, [_quantile_at(share, step, buckets) for step in range(steps)]) for labels, buckets in sorted(groups.items())
    ]


def _quantile_at(share: float, step: int, buckets: Mapping[float, Mapping[int, _Sum]]) -> float | None:
    counts = [(bound, sums[step].total) for bound, sums in sorted(buckets.items()) if step in sums]
    value = quantile_of(share, counts) if counts else math.nan
    return None if math.isnan(value) else value


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
