"""What of the rules' long windows the history can tell after a start, and how it becomes what the book would have seen. Pure.

The history knows fewer labels than the mesh tells. A rule is recalled as a whole or not at all: one that compares two counters,
of which the history knows one, would compare days with minutes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, TypeAlias

from services.metrics.alarms import heads
from services.metrics.alerts.evaluating import Labels
from services.metrics.alerts.expressions import BUCKET, COUNT, Aggregate, Increase, Selector, walk
from services.metrics.alerts.rule import Rule
from services.metrics.history import kept, rolling
from services.metrics.history.growing import Growth, Stretch
from services.metrics.history.rolling import HOUR, MINUTE, RAW, Piece

#: So far back everything is recalled as it was seen, every 15 s; before that every 5 minutes, and every hour before that.
NEAR: Final = timedelta(minutes=70)
_MIDDLE: Final = timedelta(hours=78)
_STEP_SECONDS: Final = {RAW: RAW, MINUTE: 300, HOUR: HOUR}
#: Of so many seconds at once. With 200 workers and 40 busy models that is 30,000 rows, and less than a second.
_AT_ONCE: Final = {RAW: HOUR // 3, MINUTE: 6 * HOUR, HOUR: 96 * HOUR}
#: Steps of all counters; 16 bytes each. What is older then counts as not grown.
MAX_STEPS: Final = 300_000
_ALL: Final = ("auth", "gateway", "inference", "metrics", "web")
#: Who counts what rules look back on for longer. Workers, of which there are many, do not.
_FEW: Final = ("gateway", "metrics")
_INFINITE: Final = "+Inf"

Series: TypeAlias = tuple[str, Labels]


@dataclass(frozen=True, slots=True)
class Recallable:
    """What the history can tell."""

    selectors: frozenset[Selector]
    #: Name in the history -> how far back a rule looks at it.
    horizons: Mapping[str, timedelta]
    bounds: frozenset[str]


def find(rules: Iterable[Rule]) -> Recallable:
    told: set[Selector] = set()
    others: set[Selector] = set()
    horizons: dict[str, timedelta] = defaultdict(timedelta)
    rules = tuple(rules)
    for rule in rules:
        grown = [part for part in walk(rule.when) if isinstance(part, Aggregate) and isinstance(part.of, Increase)]
        (told if all(_is_told(one) for one in grown) else others).update(_increase(one).of for one in grown)
    selectors = frozenset(told - others)
    for rule in rules:
        for part in walk(rule.when):
            if isinstance(part, Increase) and part.of in selectors:
                name = _name(part.of)
                horizons[name] = max(horizons[name], _back(part))
    bounds = {value for selector in selectors for label, values in selector.where if label == "le" for value in values}
    return Recallable(selectors, horizons, frozenset({*bounds, _INFINITE}))


def _is_told(one: Aggregate) -> bool:
    """Whether the sums of the history are those of the mesh."""
    selector = _increase(one).of
    known = kept.BY_NAME.get(_name(selector))
    where = dict(selector.where)
    labels = {*one.by, *where, *dict(selector.without)}
    if known is None or not kept.tells_apart(known[1], labels) or ("node" in labels and _back(_increase(one)) > NEAR):
        return False
    if selector.suffix == COUNT:
        return "le" not in labels
    return selector.suffix != BUCKET or ("le" not in one.by and bool(where.get("le")) and set(where["le"]) <= set(known[1].bounds))


def _increase(one: Aggregate) -> Increase:
    assert isinstance(one.of, Increase)  # so they were chosen
    return one.of


def _back(increase: Increase) -> timedelta:
    return timedelta(seconds=increase.window.seconds + increase.window.ago_seconds)


def _name(selector: Selector) -> str:
    """In the history, where a histogram's number of values is a bucket."""
    return selector.instrument.name + (BUCKET if selector.suffix == COUNT else selector.suffix)


# --- what is asked ------------------------------------------------------------------------------------------------------


def plan(wanted: Recallable, until: datetime, keeps: Mapping[int, timedelta]) -> Iterator[Stretch]:
    """The newest first. ``keeps`` is how long rows of each resolution live."""
    near = max(rolling.floor(until - NEAR, HOUR), _ceil(until - keeps[RAW]))
    middle = max(rolling.floor(until - _MIDDLE, HOUR), _ceil(until - keeps[MINUTE]))
    begin = rolling.floor(until - max(wanted.horizons.values(), default=NEAR), HOUR)
    for resolution, since, end in ((RAW, near, until), (MINUTE, middle, near), (HOUR, begin, middle)):
        before = end
        while since < before:
            at = max(since, rolling.floor(before - timedelta(seconds=RAW), _AT_ONCE[resolution]))
            names = [name for name, back in wanted.horizons.items() if resolution == RAW or until - back < before]
            if names:
                services, by_node = (_ALL, True) if resolution == RAW else (_FEW, False)
                yield Stretch(Piece(resolution, at, before), _STEP_SECONDS[resolution], names, wanted.bounds, services, by_node)
            before = at


def _ceil(at: datetime) -> datetime:
    begin = rolling.floor(at, HOUR)
    return begin if begin == at else rolling.ends(begin, HOUR)


# --- what is found ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Past:
    """Of each series when it grew and by how much, in the order of time."""

    _found: dict[Series, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    #: Names are parsed once.
    _known: dict[tuple[str, str, str], tuple[Series, ...]] = field(default_factory=dict)
    steps: int = 0

    def add(self, stretch: Stretch, grown: Sequence[Growth]) -> None:
        for one in grown:
            key = one.name, one.service, one.node
            if key not in self._known:
                self._known[key] = tuple(_series(one))
            moment = stretch.looked(one.step).timestamp()
            for series in self._known[key]:
                self._found[series].append((moment, one.growth))
                self.steps += 1

    def by_series(self) -> Iterator[tuple[str, Labels, Sequence[tuple[float, float]]]]:
        for (name, labels), steps in self._found.items():
            yield name, labels, sorted(steps)


def _series(one: Growth) -> Iterator[Series]:
    labels = heads.read(one.name, service=one.service, node=one.node)
    if labels is None:
        return
    name = one.name.partition("{")[0]
    yield name, labels
    if name.endswith(BUCKET) and ("le", _INFINITE) in labels:
        yield name.removesuffix(BUCKET) + COUNT, tuple(pair for pair in labels if pair[0] != "le")
