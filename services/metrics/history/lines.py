"""What PostgreSQL found becomes the lines of an answer. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol, TypeAlias

from services.metrics import series
from services.metrics.history import kept, rolling
from services.metrics.history.choosing import Question, Wanted
from shared import errors
from shared.api import history as api
from shared.api.history import By, HistoryLine

_Labels: TypeAlias = tuple[tuple[str, str], ...]
_BOUND: Final = "le"


class Point(Protocol):
    """``store.Point``."""

    @property
    def service(self) -> str: ...
    @property
    def node(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def growth(self) -> float: ...
    @property
    def mean(self) -> float: ...
    @property
    def nodes(self) -> int: ...
    @property
    def peak(self) -> float: ...


@dataclass(slots=True)
class _Sum:
    """One number of a line, until all points of it have been seen."""

    total: float = 0.0
    nodes: int = 0
    peak: float = -math.inf

    def add(self, point: Point, *, grows: bool) -> None:
        self.total += point.growth if grows else point.mean
        self.nodes += point.nodes
        self.peak = max(self.peak, point.peak)


def draw(question: Question, by: Sequence[By], points: Iterable[Point]) -> tuple[HistoryLine, ...]:
    """Raises BadRequest where there are too many."""
    grouped: dict[str, dict[_Labels, dict[int, _Sum]]] = {}
    parsed: dict[str, tuple[str, Mapping[str, str]]] = {}
    for point in points:
        if point.name not in parsed:
            head = series.parse_head(point.name)
            parsed[point.name] = ("", {}) if head is None else (head.name, head.labels)
        name, own = parsed[point.name]
        labels = {**own, By.SERVICE.value: point.service, By.NODE.value: point.node}
        left_out = set(By) - set(by)
        key = tuple(sorted((label, value) for label, value in labels.items() if label not in left_out))
        grouped.setdefault(name, {}).setdefault(key, {}).setdefault(point.step, _Sum()).add(point, grows=kept.is_counter(name))
    lines = [line for wanted in question.wanted for line in _of_name(wanted, question, grouped.get(wanted.name, {}))]
    if len(lines) > api.MOST_LINES:
        hint = "ask for fewer names, or with fewer words in `by`"
        raise errors.BadRequest(f"by: that would be {len(lines)} lines, and at most {api.MOST_LINES} are answered", hint=hint)
    return tuple(lines)


def _of_name(wanted: Wanted, question: Question, found: Mapping[_Labels, Mapping[int, _Sum]]) -> list[HistoryLine]:
    if wanted.quantile is not None:
        return _quantiles(wanted, wanted.quantile, question, found)
    return [
        _line(wanted, labels, [_value(wanted, sums.get(step), question, step) for step in range(question.steps)])
        for labels, sums in sorted(found.items())
    ]


def _line(wanted: Wanted, labels: _Labels, values: Sequence[float | None]) -> HistoryLine:
    return HistoryLine(wanted.asked, {name: _unescape(value) for name, value in labels}, tuple(values))


def _value(wanted: Wanted, found: _Sum | None, question: Question, step: int) -> float | None:
    if found is None:
        return None
    grows = kept.is_counter(wanted.name)
    if wanted.highest:
        return found.peak / rolling.RAW if grows else found.peak
    if grows:
        return found.total / _seconds(question, step)
    return found.total / found.nodes if kept.is_share(wanted.name) else found.total


def _seconds(question: Question, step: int) -> float:
    """How long a step is; the last one may not be over."""
    left = (question.until - question.since).total_seconds() - step * question.step_seconds
    return min(question.step_seconds, max(rolling.RAW, left))


# --- quantiles --------------------------------------------------------------------------------------------------------


def _quantiles(wanted: Wanted, share: float, question: Question, found: Mapping[_Labels, Mapping[int, _Sum]]) -> list[HistoryLine]:
    groups: dict[_Labels, dict[float, Mapping[int, _Sum]]] = {}
    for labels, sums in found.items():
        bound = float(dict(labels).get(_BOUND, "nan"))
        groups.setdefault(tuple(pair for pair in labels if pair[0] != _BOUND), {})[bound] = sums
    return [
        _line(wanted, labels, [_quantile_at(share, step, buckets) for step in range(question.steps)])
        for labels, buckets in sorted(groups.items())
    ]


def _quantile_at(share: float, step: int, buckets: Mapping[float, Mapping[int, _Sum]]) -> float | None:
    counts = [(bound, sums[step].total) for bound, sums in sorted(buckets.items()) if step in sums]
    return quantile(share, counts)


def quantile(share: float, counts: Sequence[tuple[float, float]]) -> float | None:
    """Of buckets as Prometheus counts them, each with all below it. Within one the values count as spread evenly; beyond the last bound
    it is that bound. None where there are no values."""
    if len(counts) < 2 or counts[-1][0] != math.inf or counts[-1][1] <= 0:
        return None
    rank = share * counts[-1][1]
    for (below, before), (bound, count) in pairwise([(0.0, 0.0), *counts]):
        if count >= rank and count > before:
            return below if bound == math.inf else below + (bound - below) * (rank - before) / (count - before)
    return counts[-2][0]


def _unescape(value: str) -> str:
    return value.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\") if "\\" in value else value
