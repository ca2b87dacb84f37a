"""Define the expressions of alert rules: a small subset of PromQL, for rendering (``promql``) and for evaluation (``evaluation``).

Each part has exactly the semantics of PromQL. The value of an expression is a vector: one number per set of labels. Rules must aggregate
by named labels, so that Prometheus and this service produce the same labels.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from shared.telemetry.instrument import Instrument, InstrumentKind

Where: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]

BUCKET, COUNT = "_bucket", "_count"

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Selector:
    """Series of one instrument."""

    instrument: Instrument
    #: The series have one of these values …
    where: Where = ()
    #: … and none of these.
    without: Where = ()
    #: BUCKET or COUNT for a histogram, else empty.
    suffix: str = ""

    @property
    def name(self) -> str:
        return self.instrument.name + self.suffix


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A period that ended ``ago_seconds`` ago."""

    seconds: int
    ago_seconds: int = 0


class Fold(StrEnum):
    SUM = "sum"
    MAX = "max"
    MIN = "min"


class Comparison(StrEnum):
    ABOVE = ">"
    AT_LEAST = ">="
    BELOW = "<"
    EQUAL = "=="
    OTHER_THAN = "!="


@dataclass(frozen=True, slots=True)
class Latest:
    of: Selector


@dataclass(frozen=True, slots=True)
class Increase:
    """The increase of counters within the window, with resets."""

    of: Selector
    window: TimeWindow


@dataclass(frozen=True, slots=True)
class Aggregate:
    fold: Fold
    by: tuple[str, ...]
    of: "Expression"


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of buckets, which have the label ``le``; other labels remain."""

    share: float
    of: "Expression"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Both sides have the same labels, or the divisor is a number. 0/0 compares as false."""

    over: "Expression"
    under: "Expression | float"


@dataclass(frozen=True, slots=True)
class Complement:
    """1 minus the value."""

    of: "Expression"


@dataclass(frozen=True, slots=True)
class Compared:
    """The part of the vector for which the comparison is true."""

    of: "Expression"
    how: Comparison
    threshold: float


@dataclass(frozen=True, slots=True)
class Both:
    """The series of ``first`` whose labels are in ``second``."""

    first: "Expression"
    second: "Expression"


@dataclass(frozen=True, slots=True)
class Unless:
    """The series of ``first`` whose labels are not in ``second``."""

    first: "Expression"
    second: "Expression"


@dataclass(frozen=True, slots=True)
class Absent:
    """1 while no such series exists, with the labels that are certain."""

    of: Selector

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((label, values[0]) for label, values in self.of.where if len(values) == 1))


@dataclass(frozen=True, slots=True)
class Always:
    """The constant 1, without labels."""


@dataclass(frozen=True, slots=True)
class RecordedSeries:
    """Prometheus records it as a series of this name; this service evaluates it each time."""

    name: str
    of: "Expression"


Leaf: TypeAlias = Latest | Increase | Absent | Always
OfOne: TypeAlias = Aggregate | Quantile | Complement | Compared | RecordedSeries
OfTwo: TypeAlias = Ratio | Both | Unless
Expression: TypeAlias = Leaf | OfOne | OfTwo


def parts_of(expression: Expression) -> tuple[Expression, ...]:
    """Return the direct operands."""
    match expression:
        case Both(first, second) | Unless(first, second):
            return (first, second)
        case Ratio(over, under):
            return (over,) if isinstance(under, float | int) else (over, under)
        case Latest() | Increase() | Absent() | Always():
            return ()
        case _:
            return (expression.of,)


def walk(expression: Expression) -> tuple[Expression, ...]:
    """Return the expression and all nested operands."""
    return (expression, *(inner for part in parts_of(expression) for inner in walk(part)))


def recordings_of(expression: Expression) -> tuple[RecordedSeries, ...]:
    return tuple(part for part in walk(expression) if isinstance(part, RecordedSeries))


def labels_of(expression: Expression) -> frozenset[str]:
    """Return the labels of the vector. Raises ValueError if they depend on the collector; then aggregate first."""
    match expression:
        case Aggregate():
            return frozenset(expression.by)
        case Quantile():
            return labels_of(expression.of) - {"le"}
        case Absent():
            return frozenset(label for label, _ in expression.labels)
        case Always():
            return frozenset()
        case Latest(selector) | Increase(selector, _):
            raise ValueError(f"{selector.name} is not aggregated; wrap it in an Aggregate")
        case _:
            return labels_of(parts_of(expression)[0])


def series(instrument: Instrument, *, suffix: str = "", **where: str | tuple[str, ...]) -> Selector:
    """``series(QUEUE_DEPTH, service="gateway")``; a tuple means any of its values."""
    chosen = tuple((label, (value,) if isinstance(value, str) else value) for label, value in where.items())
    return Selector(instrument, chosen, suffix=suffix)


def total(of: Selector, *by: str) -> Aggregate:
    return Aggregate(Fold.SUM, by, Latest(of))


def highest(of: Selector, *by: str) -> Aggregate:
    return Aggregate(Fold.MAX, by, Latest(of))


def lowest(of: Selector, *by: str) -> Aggregate:
    return Aggregate(Fold.MIN, by, Latest(of))


def grown(of: Selector, window: TimeWindow | int, *by: str) -> Aggregate:
    return Aggregate(Fold.SUM, by, Increase(of, window if isinstance(window, TimeWindow) else TimeWindow(window)))


def quantile(share: float, histogram: Selector, seconds: int, *by: str) -> Quantile:
    if histogram.instrument.kind is not InstrumentKind.HISTOGRAM:
        raise ValueError(f"{histogram.instrument.name} is not a histogram")
    buckets = Selector(histogram.instrument, histogram.where, histogram.without, BUCKET)
    return Quantile(share, grown(buckets, seconds, *by, "le"))


def above(of: Expression, threshold: float) -> Compared:
    return Compared(of, Comparison.ABOVE, threshold)


def at_least(of: Expression, threshold: float) -> Compared:
    """For counts: Prometheus extrapolates to the edges of the window, so 1 can become 1.004."""
    return Compared(of, Comparison.AT_LEAST, threshold)


def below(of: Expression, threshold: float) -> Compared:
    return Compared(of, Comparison.BELOW, threshold)
