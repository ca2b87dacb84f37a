"""What a threshold is, and what it reads of a collection. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from services.metrics.history.samples import Labels
from shared.telemetry.instrument import Instrument

Vector: TypeAlias = Mapping[Labels, float]

#: Of growth, if the rule names no other time.
WINDOW_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Counter:
    #: Of its series.
    name: str
    #: The labels that it is summed by.
    by: frozenset[str]
    #: Which of its series count.
    is_counted: Callable[[Mapping[str, str]], bool]
    #: The time in which its growth counts.
    seconds: float = WINDOW_SECONDS


@dataclass(frozen=True, slots=True)
class Readings:
    """Metric -> labels -> value."""

    gauges: Mapping[str, Vector]
    #: The growth of the counters within their windows, of those that were seen for as long.
    growth: Mapping[str, Vector]


Find: TypeAlias = Callable[[Readings], Vector]


def fold(how: Callable[[Iterable[float]], float], instrument: Instrument, *by: str, **where: str) -> Find:
    def find(readings: Readings) -> Vector:
        return grouped(how, readings.gauges.get(instrument.name, {}), by, where)

    return find


def grouped(how: Callable[[Iterable[float]], float], vector: Vector, by: Iterable[str], where: Mapping[str, str] = {}) -> Vector:
    groups: defaultdict[Labels, list[float]] = defaultdict(list)
    for labels, value in vector.items():
        if where.items() <= dict(labels).items():
            groups[tuple(pair for pair in labels if pair[0] in by)].append(value)
    return {labels: how(values) for labels, values in groups.items()}


@dataclass(frozen=True, slots=True)
class Threshold:
    """The condition of the alert rules with this name: each found value for which ``is_reached``."""

    name: str
    find: Find
    is_reached: Callable[[float, float], bool]
    bound: float
    #: The format of a value for people; empty if it adds nothing.
    shown: str = ""
    #: The counter whose growth it needs.
    counter: Counter | None = None
    #: What else it reads, if it is of a feature.
    gauges: tuple[Instrument, ...] = ()

    def reached(self, readings: Readings) -> Vector:
        return {labels: value for labels, value in self.find(readings).items() if self.is_reached(value, self.bound)}
