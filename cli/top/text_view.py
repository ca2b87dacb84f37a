"""A frame of `aicli top` as lines of text: columns, truncation at the terminal's width, and the effect of keys. Pure.

Text from the mesh loses its control characters here, because a node's name must not move the cursor.
"""

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Final

from cli.output import printing
from cli.top.frame import MAX_ALERTS, MAX_WRONG, FiringAlert, NodeLoadLine, SilentSource, TopFrame, UnhealthyComponent
from shared import amounts
from shared.lists import alerts, health
from shared.lists import nodes as lists

#: What a source shows, for the line that says that it is silent.
_WORDS: Final = {"health": "the health", "alerts": "the alerts", "nodes": "the nodes", "numbers": "the rates"}
#: How many nodes a key scrolls; no mesh has more than the last number.
_STEPS: Final = {"up": -1, "down": 1, "page up": -10, "page down": 10, "end": 1_000_000}
#: Longer model names are cut, because they would fill the table.
_MAX_NAME: Final = 40
#: Shown for unknown and missing values.
_NONE: Final = "–"
_GAP: Final = "  "
#: The width of a status or severity, such as "critical".
_WORD: Final = 9
#: Narrower, a line would hold only a word or two of a reason.
_MIN_TO_FOLD: Final = 40
#: Show this many nodes, or all of them, before a second line of a reason.
_ENOUGH_NODES: Final = 8
#: The minimum width of the last column.
_MIN_LAST: Final = 12


@dataclass(frozen=True, slots=True)
class TextSpan:
    text: str
    #: A color, or "bold", "dim" or "reverse"; empty for none.
    style: str = ""


Line = tuple[TextSpan, ...]


@dataclass(frozen=True, slots=True)
class View:
    """The user's choices at the terminal."""

    #: An index in COLUMNS.
    sort: int = 0
    #: Nodes above the first one shown.
    above: int = 0


@dataclass(frozen=True, slots=True)
class TextColumn:
    title: str
    cell: Callable[[NodeLoadLine], str]
    #: The sort value, highest first; None if the column cannot be sorted by.
    key: Callable[[NodeLoadLine], float | None] | None = None
    is_number: bool = True
    #: In a narrow terminal, the lowest is dropped first; 0 stays, and the last column is cut.
    rank: int = 0


def press(view: View, key: str) -> View | None:
    """Return the view after a key; None to quit. Unknown keys change nothing."""
    match key:
        case "q" | "Q":
            return None
        case "s":
            places = [0, *(place for place, column in enumerate(COLUMNS) if column.key is not None)]
            return View(places[(places.index(view.sort) + 1) % len(places)])
        case "home":
            return replace(view, above=0)
        case _ if key in _STEPS:
            return replace(view, above=max(0, view.above + _STEPS[key]))
    return view


def scrolled(frame: TopFrame, view: View, width: int, height: int) -> View:
    """Do not scroll past the last node."""
    rows = _node_rows(_above(frame, width, height), height)
    return replace(view, above=min(view.above, max(0, len(frame.nodes) - rows)))


def fitted(frame: TopFrame, view: View, width: int, height: int) -> list[Line]:
    title = (*_title(frame), TextSpan(f"   q quit   s sort: {COLUMNS[view.sort].title.lower()}   ↑ ↓ scroll", "dim"))
    above = _above(frame, width, height)
    lines: list[Line] = [title, *above]
    if frame.nodes:
        heading, *rows = _table(frame, view, width)
        lines += [(), heading, *rows[view.above : view.above + _node_rows(above, height)]]
    return [_cut(line, width) for line in lines[:height]]


def _above(frame: TopFrame, width: int, height: int) -> list[Line]:
    """Return the body, with reasons on two lines if enough nodes still fit."""
    folded = list(_body(frame, width))
    return folded if _node_rows(folded, height) >= min(len(frame.nodes), _ENOUGH_NODES) else list(_body(frame, None))


def _node_rows(above: Sequence[Line], height: int) -> int:
    """Return the rows for nodes: what title, body, empty line and heading leave."""
    return max(1, height - len(above) - 3)


def whole(frame: TopFrame) -> list[str]:
    table = [(), *_table(frame, View(), None)] if frame.nodes else []
    return ["".join(span.text for span in line).rstrip() for line in (_title(frame), *_body(frame, None), *table)]


def _title(frame: TopFrame) -> Line:
    word, tone = health.status(frame.health or "health unknown")
    firing = "" if not frame.alerts_firing else f"   {printing.counted(frame.alerts_firing, 'alert')}"
    clock = printing.moment(frame.at).partition(" ")[2]
    return (
        TextSpan("aimesh ", "bold"),
        TextSpan(printing.one_line(word), printing.STYLES[tone]),
        TextSpan(firing, "red"),
        TextSpan(f"   {clock}", "dim"),
    )


def _body(frame: TopFrame, width: int | None) -> Iterator[Line]:
    for problem, group in groupby(sorted(frame.silent, key=lambda source: source.problem), key=lambda source: source.problem):
        yield _silent(list(group), problem)
    for wrong in frame.wrong:
        yield from _unhealthy(wrong, width)
    yield from _more(frame.parts_wrong, MAX_WRONG, "/admin in the browser")
    yield from (_alert(alert) for alert in frame.alerts)
    yield from _more(frame.alerts_firing, MAX_ALERTS, "aicli alerts list")
    yield _rates(frame)
    if frame.queues:
        waiting = ", ".join(f"{printing.one_line(model)[:_MAX_NAME] or '?'} {number:,.0f}" for model, number in frame.queues.items())
        yield (TextSpan("waiting: ", "bold"), TextSpan(waiting))


def _more(number: int | None, shown: int, where: str) -> Iterator[Line]:
    if number is not None and number > shown:
        yield (TextSpan(f"and {number - shown} more: {where}", "dim"),)


def _silent(group: list[SilentSource], problem: str) -> Line:
    words = printing.names(_WORDS.get(source.source, source.source) for source in group)
    ages = [source.age_seconds for source in group if source.age_seconds is not None]
    old = f"{words}: {amounts.show_duration(max(ages))} old" if ages else f"{words}: unknown"
    return (TextSpan(f"{old} – {printing.one_line(problem)}", "yellow"),)


def _unhealthy(wrong: UnhealthyComponent, width: int | None) -> Iterator[Line]:
    text = printing.one_line(f"{wrong.kind} {wrong.name}, {amounts.show_duration(wrong.seconds)}: {wrong.detail}")
    first, *rest = _folded(text, width)
    word, tone = health.status(wrong.status)
    yield (TextSpan(f"{printing.one_line(word):<{_WORD}}", printing.STYLES[tone]), TextSpan(f" {first}"))
    yield from ((TextSpan(f"{'':<{_WORD}} {more}"),) for more in rest)


def _folded(text: str, width: int | None) -> list[str]:
    if width is None or width < _MIN_TO_FOLD:
        return [text]
    return textwrap.wrap(text, width - _WORD - 1, max_lines=2, placeholder=" …") or [""]


def _alert(alert: FiringAlert) -> Line:
    after = "; silenced" if alert.silenced else ""
    style = printing.STYLES[alerts.tone(alert.severity)]
    where = "".join(f" {label}={value}" for label, value in alert.labels.items())
    text = f" {alert.name}, {amounts.show_duration(alert.seconds)}: {alert.summary}{where}{after}"
    return (TextSpan(f"{printing.one_line(alert.severity):<{_WORD}}", style), TextSpan(printing.one_line(text)))


def _rates(frame: TopFrame) -> Line:
    failing = "red" if frame.errors_per_second else ""
    streams = _NONE if frame.streams_running is None else f"{frame.streams_running:,}"
    return (
        TextSpan(f"{_rate(frame.requests_per_second)} requests/s   "),
        TextSpan(f"{_rate(frame.errors_per_second)} errors/s", failing),
        TextSpan(f"   tokens/s: {_rate(frame.input_tokens_per_second)} in, {_rate(frame.output_tokens_per_second)} out"),
        TextSpan(f"   {streams} running"),
        *_drafts(frame),
    )


def _drafts(frame: TopFrame) -> Line:
    if not frame.drafted_tokens_per_second:
        return ()
    accepted = (frame.accepted_tokens_per_second or 0.0) / frame.drafted_tokens_per_second
    return (TextSpan(f"   drafts: {_rate(frame.drafted_tokens_per_second)} tokens/s, {_share(accepted)} accepted"),)


def _share(value: float | None) -> str:
    return _NONE if value is None else f"{value:.0%}"


def _rate(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.1f}" if 0 < value < 10 else f"{value:,.0f}"


def _load(node: NodeLoadLine) -> str:
    """Shorter than in lists, because it comes before the models in the narrowest terminal."""
    return f"{node.running}/{node.slots}" + (f" +{node.queued}" if node.queued else "") if node.slots else _NONE


COLUMNS: Final = (
    # The start of an id identifies a node, as in `aicli nodes`.
    TextColumn("NODE", lambda node: lists.short(node.id), is_number=False),
    TextColumn("KIND", lambda node: node.kind, is_number=False, rank=5),
    TextColumn("STATE", lambda node: lists.STATES[node.state][0], is_number=False),
    TextColumn("PATH", lambda node: lists.path(node.path) or _NONE, is_number=False, rank=6),
    TextColumn("RTT", lambda node: lists.round_trip(node.round_trip_ms) or _NONE, lambda node: node.round_trip_ms, rank=4),
    TextColumn("CPU", lambda node: _share(node.cpu), lambda node: node.cpu, rank=7),
    TextColumn("GPU", lambda node: _share(node.gpu), lambda node: node.gpu, rank=8),
    TextColumn("MEMORY", lambda node: _share(node.memory), lambda node: node.memory, rank=2),
    TextColumn("GPU MEM", lambda node: _share(node.gpu_memory), lambda node: node.gpu_memory, rank=1),
    TextColumn("RUNNING", _load, lambda node: node.running + node.queued),
    TextColumn("TOKENS/S", lambda node: _rate(node.tokens_per_second), lambda node: node.tokens_per_second),
    TextColumn("MODELS", lambda node: printing.names(model[:_MAX_NAME] for model in node.models), is_number=False),
    TextColumn("WHY NOT", lambda node: node.why_not or _NONE, is_number=False, rank=3),
)
_STATE: Final = "STATE"


@dataclass(frozen=True, slots=True)
class _Filled:
    """A column with its cells, from the first node to the last."""

    definition: TextColumn
    cells: tuple[str, ...]

    @property
    def width(self) -> int:
        return max(map(len, (self.definition.title, *self.cells)))

    @property
    def has_values(self) -> bool:
        return any(cell != _NONE for cell in self.cells)


def _table(frame: TopFrame, view: View, width: int | None) -> Iterator[Line]:
    by = COLUMNS[view.sort]
    nodes = _sorted(frame.nodes, by)
    filled = [_Filled(column, tuple(printing.one_line(column.cell(node)) for node in nodes)) for column in COLUMNS]
    filled = _chosen([column for column in filled if column.has_values or column.definition is by], by, width)
    is_old = any(silent.source == "nodes" for silent in frame.silent)
    yield tuple(_spaced(TextSpan(_padded(column, column.definition.title), "bold") for column in filled))
    for place, node in enumerate(nodes):
        yield tuple(_spaced(_cell(column, place, node, is_old=is_old) for column in filled))


def _chosen(filled: list[_Filled], by: TextColumn, width: int | None) -> list[_Filled]:
    removable = sorted(
        (column for column in filled if column.definition.rank and column.definition is not by), key=lambda column: column.definition.rank
    )
    while width is not None and removable and _least_width(filled) > width:
        filled = [column for column in filled if column is not removable[0]]
        del removable[0]
    return filled


def _least_width(filled: Sequence[_Filled]) -> int:
    *whole, last = filled
    return sum(column.width + len(_GAP) for column in whole) + min(last.width, _MIN_LAST)


def _cell(column: _Filled, place: int, node: NodeLoadLine, *, is_old: bool) -> TextSpan:
    style = "dim" if is_old else printing.STYLES[lists.STATES[node.state][1]] if column.definition.title == _STATE else ""
    return TextSpan(_padded(column, column.cells[place]), style)


def _sorted(nodes: Sequence[NodeLoadLine], by: TextColumn) -> list[NodeLoadLine]:
    key = by.key
    if key is None:
        return sorted(nodes, key=lambda node: (node.kind, node.id))
    return sorted(nodes, key=lambda node: (-(-1.0 if (value := key(node)) is None else value), node.kind, node.id))


def _padded(column: _Filled, text: str) -> str:
    return text.rjust(column.width) if column.definition.is_number else text.ljust(column.width)


def _spaced(spans: Iterable[TextSpan]) -> Iterator[TextSpan]:
    for place, span in enumerate(spans):
        if place:
            yield TextSpan(_GAP)
        yield span


def _cut(line: Line, width: int) -> Line:
    left, spans = width, []
    for span in line:
        if left <= 0:
            break
        spans.append(replace(span, text=span.text[:left]))
        left -= len(span.text)
    return tuple(spans)
