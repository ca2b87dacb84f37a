"""Fit a table into a terminal: hide the least important columns, wrap prose, never cut or wrap ids. Pure."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

GAP = 2
#: A narrower column of prose cannot be read; other columns are hidden first.
_MIN_PROSE = 24
_INDENT = 2
#: Cells that say nothing: a column with no others is hidden first.
_NOTHING = frozenset({"", "–", "0", "0 %"})
#: Gets the text and the numbers of its row and column; returns it styled, with the same width.
Paint = Callable[[str, int, int], str]


@dataclass(frozen=True, slots=True, eq=False)
class LayoutColumn:
    title: str
    cells: Sequence[str]
    #: 1 is always shown; of the others, the highest is hidden first.
    rank: int = 1
    #: Prose, which may wrap between words.
    wraps: bool = False
    #: Goes below its row if the table is too wide.
    below: bool = False

    @property
    def width(self) -> int:
        return max(map(display_width, (self.title, *self.cells)))

    @property
    def least(self) -> int:
        return min(self.width, max(_MIN_PROSE, display_width(self.title))) if self.wraps else self.width

    @property
    def says_nothing(self) -> bool:
        return _NOTHING.issuperset(self.cells)


@dataclass(frozen=True, slots=True)
class TableLayout:
    lines: tuple[str, ...]
    hidden: tuple[str, ...]


def lay_out(columns: Sequence[LayoutColumn], width: int | None, paint: Paint = lambda text, row, column: text) -> TableLayout:
    """Return the lines of the table. With no ``width``, every row is one line with all columns."""
    if width is None or _needed([column.width for column in columns]) <= width:
        shown, below, hidden = list(columns), list[LayoutColumn](), list[LayoutColumn]()
        widths = [column.width for column in columns]
    else:
        below = [column for column in columns if column.below]
        shown, hidden = _hide([column for column in columns if not column.below], width)
        widths = _share(shown, width)
    numbers = [columns.index(column) for column in shown]
    lines = [_line([column.title for column in shown], widths, lambda text, place: paint(text, -1, numbers[place]))]
    for row in range(len(columns[0].cells) if columns else 0):
        parts = [wrap(column.cells[row], size) if column.wraps else [column.cells[row]] for column, size in zip(shown, widths, strict=True)]
        for number in range(max(map(len, parts), default=0)):
            cells = [part[number] if number < len(part) else "" for part in parts]
            lines.append(_line(cells, widths, lambda text, place, row=row: paint(text, row, numbers[place])))  # type: ignore[misc]
        for column in below:
            text = [] if column.cells[row] in _NOTHING else wrap(column.cells[row], (width or 0) - _INDENT)
            lines += [" " * _INDENT + paint(part, row, columns.index(column)) for part in text]
    return TableLayout(tuple(lines), tuple(column.title for column in hidden))


def display_width(text: str) -> int:
    """Return how many cells of a terminal the text takes: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(_cells(letter) for letter in text)


def wrap(text: str, width: int) -> list[str]:
    """Break the text between words; only a word that is longer than a line is broken inside."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if display_width(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _chop(word, width)
        lines += full
    return [*lines, line]


def _cells(letter: str) -> int:
    if unicodedata.combining(letter) or unicodedata.category(letter) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _chop(word: str, width: int) -> list[str]:
    parts, used = [""], 0
    for letter in word:
        size = _cells(letter)
        if used + size > width and parts[-1]:
            parts.append("")
            used = 0
        parts[-1] += letter
        used += size
    return parts


def _needed(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _hide(columns: list[LayoutColumn], width: int) -> tuple[list[LayoutColumn], list[LayoutColumn]]:
    shown, hidden = list(columns), list[LayoutColumn]()
    while _needed([column.least for column in shown]) > width:
        optional = [number for number, column in enumerate(shown) if column.rank > 1]
        if not optional:
            break
        hidden.append(shown.pop(max(optional, key=lambda number: (shown[number].says_nothing, shown[number].rank, number))))
    return shown, hidden


def _share(columns: Sequence[LayoutColumn], width: int) -> list[int]:
    """Give each column of prose what it needs, or its share of what the others leave."""
    widths = [0 if column.wraps else column.width for column in columns]
    prose = sorted((number for number, column in enumerate(columns) if column.wraps), key=lambda number: columns[number].width)
    left = width - _needed(widths)
    for place, number in enumerate(prose):
        widths[number] = max(columns[number].least, min(columns[number].width, left // (len(prose) - place)))
        left -= widths[number]
    return widths


def _line(cells: Sequence[str], widths: Sequence[int], paint: Callable[[str, int], str]) -> str:
    last = max((number for number, cell in enumerate(cells) if cell), default=-1)
    padded = [
        paint(cell, number) + ("" if number == last else " " * (width - display_width(cell)))
        for number, (cell, width) in enumerate(zip(cells[: last + 1], widths, strict=False))
    ]
    return (" " * GAP).join(padded)
