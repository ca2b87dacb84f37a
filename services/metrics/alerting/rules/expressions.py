"""What a rule may ask of the metrics: a small algebra that becomes PromQL (``promql``) or is worked out here (``evaluation``).

It has only what the rules need, and each part means exactly what it means in PromQL. The value of an expression is a vector:
one number for each set of labels. A rule groups by labels it names, so that both ways end in the same labels.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from shared.telemetry.instrument import Instrument, InstrumentKind

#: label -> the values that are meant.
Where: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]

#: The end of the name of a histogram's series.
BUCKET, COUNT = "_bucket", "_count"

MINUTE = 60
HOUR = 60 * MINUTE
DAY = 24 * HOUR


@dataclass(frozen=True, slots=True)
class Selector:
    """Series of one instrument."""

    instrument: Instrument
    #: They have one of these values …
    where: Where = ()
    #: … and none of these.
    without: Where = ()
    #: BUCKET or COUNT of a histogram; empty of the others.
    suffix: str = ""

    @property
    def name(self) -> str:
        return self.instrument.name + self.suffix


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """A stretch of time that ended so long ago."""

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
    """How much counters grew within the window; a counter that began again did not shrink."""

    of: Selector
    window: TimeWindow


@dataclass(frozen=True, slots=True)
class Aggregate:
    fold: Fold
    by: tuple[str, ...]
    of: "Expression"


@dataclass(frozen=True, slots=True)
class Quantile:
    """Of buckets, which are vectors with the label ``le``; the others stay."""

    share: float
    of: "Expression"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Both sides have the same labels, or the lower one is a plain number. Nothing over nothing compares as false."""

    over: "Expression"
    under: "Expression | float"


@dataclass(frozen=True, slots=True)
class Complement:
    """What is left to 1."""

    of: "Expression"


@dataclass(frozen=True, slots=True)
class Compared:
    """The part of the vector for which this is true."""

    of: "Expression"
    how: Comparison
    threshold: float


@dataclass(frozen=True, slots=True)
class Both:
    """What is in the first and has its labels in the second."""

    first: "Expression"
    second: "Expression"


@dataclass(frozen=True, slots=True)
class Unless:
    """What is in the first and does not have its labels in the second."""

    first: "Expression"
    second: "Expression"


@dataclass(frozen=True, slots=True)
class Absent:
    """1 while there is no such series, with the labels that it would have for certain."""

    of: Selector

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((label, values[0]) for label, values in self.of.where if len(values) == 1))


@dataclass(frozen=True, slots=True)
class Always:
    """1 without labels."""


@dataclass(frozen=True, slots=True)
class RecordedSeries:
    """Prometheus keeps it as a series of this name; here it is worked out each time."""

    name: str
    of: "Expression"


#: Asks the metrics themselves.
Leaf: TypeAlias = Latest | Increase | Absent | Always
#: Is made of one other, ``of``.
OfOne: TypeAlias = Aggregate | Quantile | Complement | Compared | RecordedSeries
#: Is made of two others.
OfTwo: TypeAlias = Ratio | Both | Unless
Expression: TypeAlias = Leaf | OfOne | OfTwo


def parts_of(expression: Expression) -> tuple[Expression, ...]:
    """What an expression is directly made of."""
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
    """It and all that it is made of."""
    return (expression, *(inner for part in parts_of(expression) for inner in walk(part)))


def selectors_of(expression: Expression) -> tuple[Selector, ...]:
    return tuple(part.of for part in walk(expression) if isinstance(part, Latest | Increase | Absent))


def recordings_of(expression: Expression) -> tuple[RecordedSeries, ...]:
    return tuple(part for part in walk(expression) if isinstance(part, RecordedSeries))


def labels_of(expression: Expression) -> frozenset[str]:
    """The labels that its vector has. Raises ValueError where they depend on who collects the series: that has to be grouped."""
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
            raise ValueError(f"{selector.name} is not grouped; put it into an Aggregate")
        case _:
            return labels_of(parts_of(expression)[0])


# --- words for rules ------------------------------------------------------------------------------------------------


def series(instrument: Instrument, *, suffix: str = "", **where: str | tuple[str, ...]) -> Selector:
    """``series(QUEUE_DEPTH, service="gateway")``; a tuple means one of its values."""
    chosen = tuple((label, (value,) if isinstance(value, str) else value) for label, value in where.items())
    return Selector(instrument, chosen, suffix=suffix)


def total(of: Selector, *by: str) -> Aggregate:
    return Aggregate(Fold.SUM, by, Latest(of))


def highest(of: Selector, *by: str) -> Aggregate:
    return Aggregate(Fold.MAX, by, Latest(of))


def lowest(of: Selector, *by: str) -> Aggregate:
    return Aggregate(Fold.MIN, by, Latest(of))


def grown(of: Selector, window: TimeWindow | int, *by: str) -> Aggregate:
    """How much counters grew together."""
    return Aggregate(Fold.SUM, by, Increase(of, window if isinstance(window, TimeWindow) else TimeWindow(window)))


def quantile(share: float, histogram: Selector, seconds: int, *by: str) -> Quantile:
    if histogram.instrument.kind is not InstrumentKind.HISTOGRAM:
        raise ValueError(f"{histogram.instrument.name} is no histogram")
    buckets = Selector(histogram.instrument, histogram.where, histogram.without, BUCKET)
    return Quantile(share, grown(buckets, seconds, *by, "le"))


def above(of: Expression, threshold: float) -> Compared:
    return Compared(of, Comparison.ABOVE, threshold)


def at_least(of: Expression, threshold: float) -> Compared:
    """For counts: Prometheus may take 1 for 1.004, as it reckons with what may have come at the edges of the window."""
    return Compared(of, Comparison.AT_LEAST, threshold)


def below(of: Expression, threshold: float) -> Compared:
    return Compared(of, Comparison.BELOW, threshold)
