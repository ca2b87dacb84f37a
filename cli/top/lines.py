"""A frame of `aicli top` as lines of text: words, columns, what is cut where the terminal ends, and what the keys change of it. Pure.

What comes from the mesh loses its control characters here: a node's name must not move the cursor.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from cli import output
from cli.top.frame import MOST_ALERTS, FiringAlert, Frame, NodeLine, Silent, Wrong

_COLOURS: Final = {"healthy": "green", "degraded": "yellow", "down": "red"}
_STATES: Final = {"used": "green", "not used": "yellow", "not let in": "red", "gone": "red"}
_SEVERITIES: Final = {"page": "red", "critical": "red", "warning": "yellow"}
#: What an operator looks at, by the source that is silent.
_WORDS: Final = {"health": "the health", "alerts": "the alerts", "nodes": "the nodes", "numbers": "the numbers"}
#: Longer names of models are cut; the table would be nothing else.
_MOST_NAME: Final = 40


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    #: A colour, or "bold", "dim" or "reverse"; empty for none.
    style: str = ""


Line = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What somebody at the terminal has chosen."""

    #: A place in COLUMNS.
    sort: int = 0
    #: Nodes that are above the first that is shown.
    above: int = 0


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    cell: Callable[[NodeLine], str]
    #: By this, the highest first; None for what is not sorted by.
    key: Callable[[NodeLine], float | None] | None = None
    is_number: bool = True


def press(view: View, key: str) -> View | None:
    """What a key changes; None for the end. Keys that mean nothing change nothing."""
    match key:
        case "q" | "Q":
            return None
        case "s":
            places = [0, *(place for place, column in enumerate(COLUMNS) if column.key is not None)]
            return View(places[(places.index(view.sort) + 1) % len(places)])
        case "down":
            return replace(view, above=view.above + 1)
        case "up":
            return replace(view, above=max(0, view.above - 1))
    return view


def scrolled(frame: Frame, view: View, height: int) -> View:
    """No further down than to the last node."""
    return replace(view, above=min(view.above, max(0, len(frame.nodes) - _room(frame, height))))


def fitted(frame: Frame, view: View, width: int, height: int) -> list[Line]:
    """What a terminal of this size has room for."""
    title = (*_title(frame), Span(f"   q quit   s sort: {COLUMNS[view.sort].title.lower()}   ↑ ↓ scroll", "dim"))
    lines: list[Line] = [title, *_body(frame)]
    if frame.nodes:
        heading, *rows = _table(frame, view)
        lines += [(), heading, *rows[view.above : view.above + _room(frame, height)]]
    return [_cut(line, width) for line in lines[:height]]


def _room(frame: Frame, height: int) -> int:
    """For nodes: what the title, the body, an empty line and the heading leave."""
    return max(1, height - sum(1 for _ in _body(frame)) - 3)


def whole(frame: Frame) -> list[str]:
    """All of it, as plain text."""
    table = [(), *_table(frame, View())] if frame.nodes else []
    return ["".join(span.text for span in line).rstrip() for line in (_title(frame), *_body(frame), *table)]


# --- above the table --------------------------------------------------------------------------------------------------


def _title(frame: Frame) -> Line:
    word = frame.health or "health not known"
    firing = "" if not frame.alerts_firing else f"   {output.counted(frame.alerts_firing, 'alert')}"
    clock = output.moment(frame.at).partition(" ")[2]
    return (Span("aimesh ", "bold"), Span(_clean(word), _COLOURS.get(word, "yellow")), Span(firing, "red"), Span(f"   {clock}", "dim"))


def _body(frame: Frame) -> Iterator[Line]:
    yield from (_silent(silent) for silent in _by_problem(frame.silent))
    yield from (_ill(wrong) for wrong in frame.wrong)
    yield from (_alert(alert) for alert in frame.alerts)
    if frame.alerts_firing is not None and frame.alerts_firing > MOST_ALERTS:
        yield (Span(f"and {frame.alerts_firing - MOST_ALERTS} more: aicli alerts list", "dim"),)
    yield _rates(frame)
    if frame.queues:
        waiting = ", ".join(f"{_clean(model)[:_MOST_NAME] or '?'} {number:,.0f}" for model, number in frame.queues.items())
        yield (Span("waiting: ", "bold"), Span(waiting))


def _by_problem(silent: Sequence[Silent]) -> Iterator[tuple[list[Silent], str]]:
    """Those that are silent for one reason share a line."""
    for problem, group in groupby(sorted(silent, key=lambda one: one.problem), key=lambda one: one.problem):
        yield list(group), problem


def _silent(of: tuple[list[Silent], str]) -> Line:
    group, problem = of
    words = output.names(_WORDS.get(one.source, one.source) for one in group)
    ages = [one.age_seconds for one in group if one.age_seconds is not None]
    old = f"{words}: {output.duration(max(ages))} old" if ages else f"{words}: not known"
    return (Span(f"{old} – {_clean(problem)}", "yellow"),)


def _ill(wrong: Wrong) -> Line:
    since = output.duration(wrong.seconds)
    style = _COLOURS.get(wrong.status, "yellow")
    return (Span(f"{_clean(wrong.status):<9}", style), Span(_clean(f" {wrong.kind} {wrong.name}, {since}: {wrong.detail}")))


def _alert(alert: FiringAlert) -> Line:
    after = "; silenced" if alert.silenced else f"; {alert.seen_by} looks after it" if alert.seen_by else ""
    style = _SEVERITIES.get(alert.severity, "")
    text = f" {alert.name}, {output.duration(alert.seconds)}: {alert.summary}{after}"
    return (Span(f"{_clean(alert.severity):<9}", style), Span(_clean(text)))


def _rates(frame: Frame) -> Line:
    failing = "red" if frame.errors_per_second else ""
    streams = "–" if frame.streams_running is None else f"{frame.streams_running:,}"
    return (
        Span(f"{_rate(frame.requests_per_second)} requests/s   "),
        Span(f"{_rate(frame.errors_per_second)} errors/s", failing),
        Span(f"   tokens/s: {_rate(frame.input_tokens_per_second)} in, {_rate(frame.output_tokens_per_second)} out"),
        Span(f"   {streams} running"),
    )


# --- the table --------------------------------------------------------------------------------------------------------


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _round_trip(node: NodeLine) -> str:
    if node.round_trip_ms is None:
        return "–"
    return f"{node.round_trip_ms:.1f} ms" if node.round_trip_ms < 10 else f"{node.round_trip_ms:.0f} ms"


def _slots(node: NodeLine) -> str:
    if not node.slots:
        return "–"
    return f"{node.running}/{node.slots}" + (f" +{node.queued}" if node.queued else "")


COLUMNS: Final = (
    # The start of a node's id tells nodes apart, as in `aicli nodes`.
    Column("NODE", lambda node: node.id[:9], is_number=False),
    Column("KIND", lambda node: node.kind, is_number=False),
    Column("STATE", lambda node: node.state, is_number=False),
    Column("PATH", lambda node: node.path or "–", is_number=False),
    Column("RTT", _round_trip, lambda node: node.round_trip_ms),
    Column("CPU", lambda node: _share(node.cpu), lambda node: node.cpu),
    Column("GPU", lambda node: _share(node.gpu), lambda node: node.gpu),
    Column("MEMORY", lambda node: _share(node.memory), lambda node: node.memory),
    Column("GPU MEM", lambda node: _share(node.gpu_memory), lambda node: node.gpu_memory),
    Column("RUNNING", _slots, lambda node: node.running + node.queued),
    Column("TOKENS/S", lambda node: _rate(node.tokens_per_second), lambda node: node.tokens_per_second),
    Column("MODELS", lambda node: output.names(model[:_MOST_NAME] for model in node.models), is_number=False),
)
_STATE: Final = 2


def _table(frame: Frame, view: View) -> Iterator[Line]:
    nodes = _sorted(frame.nodes, COLUMNS[view.sort])
    cells = [[_clean(column.cell(node)) for column in COLUMNS] for node in nodes]
    widths = [max(map(len, column)) for column in zip([column.title for column in COLUMNS], *cells, strict=True)]
    is_old = any(silent.source == "nodes" for silent in frame.silent)
    heading = [Span(_padded(column, column.title, width), "bold") for column, width in zip(COLUMNS, widths, strict=True)]
    yield tuple(_spaced(heading))
    for node, row in zip(nodes, cells, strict=True):
        spans = [Span(_padded(column, text, width)) for column, text, width in zip(COLUMNS, row, widths, strict=True)]
        spans[_STATE] = replace(spans[_STATE], style=_STATES.get(node.state, ""))
        yield tuple(_spaced([replace(span, style="dim") for span in spans] if is_old else spans))


def _sorted(nodes: Sequence[NodeLine], by: Column) -> list[NodeLine]:
    key = by.key
    if key is None:
        return sorted(nodes, key=lambda node: (node.kind, node.id))
    return sorted(nodes, key=lambda node: (-(-1.0 if (value := key(node)) is None else value), node.kind, node.id))


def _padded(column: Column, text: str, width: int) -> str:
    return text.rjust(width) if column.is_number else text.ljust(width)


def _spaced(spans: Iterable[Span]) -> Iterator[Span]:
    for place, span in enumerate(spans):
        if place:
            yield Span("  ")
        yield span


def _clean(text: str) -> str:
    return output.printable(text).replace("\n", " ").replace("\t", " ")


def _cut(line: Line, width: int) -> Line:
    left, spans = width, []
    for span in line:
        if left <= 0:
            break
        spans.append(replace(span, text=span.text[:left]))
        left -= len(span.text)
    return tuple(spans)
