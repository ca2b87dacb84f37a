"""Render expressions as PromQL. Pure."""

from typing import assert_never

from services.metrics.alerting.rules.expressions import (
    DAY,
    HOUR,
    MINUTE,
    Absent,
    Aggregate,
    Always,
    Both,
    Compared,
    Complement,
    Expression,
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
    Where,
)

_UNITS = ((DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (1, "s"))


def render(expression: Expression) -> str:
    if isinstance(expression, Leaf):
        return _leaf(expression)
    return _of_two(expression) if isinstance(expression, OfTwo) else _of_one(expression)


def _leaf(expression: Leaf) -> str:
    match expression:
        case Latest(selector):
            return _selector(selector)
        case Increase(selector, window):
            return f"increase({_selector(selector)}{_window(window)})"
        case Absent(selector):
            return f"absent({_selector(selector)})"
        case Always():
            return "vector(1)"
        case _:
            assert_never(expression)


def _of_one(expression: OfOne) -> str:
    match expression:
        case Aggregate(fold, by, of):
            return f"{fold} by ({', '.join(by)}) ({render(of)})" if by else f"{fold}({render(of)})"
        case Quantile(share, of):
            return f"histogram_quantile({number(share)}, {render(of)})"
        case Complement(of):
            return f"1 - {_inside(of)}"
        case Compared(of, how, threshold):
            return f"{_inside(of)} {how} {number(threshold)}"
        case RecordedSeries(name, _):
            return name
        case _:
            assert_never(expression)


def _of_two(expression: OfTwo) -> str:
    match expression:
        case Ratio(over, under):
            return f"{_inside(over)} / {number(under) if isinstance(under, float | int) else _inside(under)}"
        case Both(first, second):
            return f"{_inside(first)} and {_inside(second)}"
        case Unless(first, second):
            return f"{_inside(first)} unless {_inside(second)}"
        case _:
            assert_never(expression)


def recorded(recording: RecordedSeries) -> str:
    """Return the expression that Prometheus records."""
    return render(recording.of)


def duration(seconds: int) -> str:
    """Format a duration in the largest exact unit: 5m, 1h, 3d."""
    length, unit = next(each for each in _UNITS if seconds % each[0] == 0)
    return f"{seconds // length}{unit}"


def number(value: float) -> str:
    return f"{value:.10g}"


def _inside(expression: Expression) -> str:
    """Render an operand, in brackets if it has an operator."""
    text = render(expression)
    return f"({text})" if isinstance(expression, Ratio | Complement | Compared | Both | Unless) else text


def _selector(selector: Selector) -> str:
    matchers = [*_matchers(selector.where, "=", "=~"), *_matchers(selector.without, "!=", "!~")]
    return f"{selector.name}{{{', '.join(matchers)}}}" if matchers else selector.name


def _matchers(where: Where, one: str, several: str) -> list[str]:
    return [f'{label}{one if len(values) == 1 else several}"{"|".join(values)}"' for label, values in where]


def _window(window: TimeWindow) -> str:
    ago = f" offset {duration(window.ago_seconds)}" if window.ago_seconds else ""
    return f"[{duration(window.seconds)}]{ago}"
