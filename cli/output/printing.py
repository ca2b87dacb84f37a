"""Print tables for people, plain text for pipes and JSON for scripts; errors as one line or one object.

Text from the mesh is printed without control characters: a name or an answer must not move the cursor, rename the window or write to the
clipboard.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TextIO, TypeAlias, TypeVar

import click
import msgspec

Row = TypeVar("Row", bound=msgspec.Struct)
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

#: C0 and C1 controls and DEL, except newline and tab.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    return text.translate(_CONTROLS)


def plain(value: object) -> Json:
    """Convert a message to JSON values, with snake_case names."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    built: Json = msgspec.to_builtins(value)
    return built


def show_json(value: Json) -> None:
    """Indented at a terminal, one line in a pipe."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def show_message(value: msgspec.Struct, text: str, *, as_json: bool) -> None:
    """Print a service's answer as JSON, or as ``text``."""
    if as_json:
        show_json(plain(value))
    else:
        click.echo(text)


@dataclass(frozen=True, slots=True)
class TableColumn(Generic[Row]):
    title: str
    #: Returns the text of a row's cell.
    cell: Callable[[Row], str]
    #: Returns rich's style for the cell, used at terminals only.
    style: Callable[[Row], str] | None = None


def show_rows(rows: Sequence[Row], columns: Sequence[TableColumn[Row]], *, as_json: bool, empty: str) -> None:
    """Print a list as JSON, a table or aligned text. ``empty`` goes to stderr, so that a pipe gets no invalid row."""
    if as_json:
        show_json([plain(row) for row in rows])
    elif not rows:
        click.echo(empty, err=True)
    elif sys.stdout.isatty():
        _show_table(rows, columns)
    else:
        cells = [[column.title for column in columns]]
        cells += [[_one_line(column.cell(row)) for column in columns] for row in rows]
        _show_aligned(cells)


def _show_table(rows: Sequence[Row], columns: Sequence[TableColumn[Row]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column.title, overflow="fold")
    for row in rows:
        # In a str, rich would interpret markup such as [link=…].
        table.add_row(*(Text(_one_line(column.cell(row)), style=column.style(row) if column.style else "") for column in columns))
    Console().print(table)


def _show_aligned(cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _one_line(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def note(text: str) -> None:
    """Print a note on stderr, so that it never gets into a pipe."""
    click.echo(printable(text), err=True)


def moment(value: datetime | None) -> str:
    """Format a time in the user's time zone, to the second; a dash for None."""
    return "–" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(value: datetime) -> str:
    return duration((datetime.now(UTC) - value).total_seconds())


def duration(value: float) -> str:
    """Format in the largest unit that divides it."""
    seconds = max(0, round(value))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def counted(number: int | str, one: str, many: str = "") -> str:
    """Format a number with its noun in singular or plural; ``many`` for irregular plurals."""
    return f"{number} {one if str(number) == '1' else many or one + 's'}"


def names(values: Iterable[str]) -> str:
    return ", ".join(values) or "–"


def show_error(code: str, message: str, hint: str, *, as_json: bool) -> None:
    """Print the one line or object that a failed command leaves on stderr."""
    if as_json:
        click.echo(json.dumps({"error": {"code": code, "message": message, "hint": hint}}, ensure_ascii=False), err=True)
        return
    line = _one_line(f"{message} – {hint}" if hint else message)
    click.echo(f"{styled('error:', 'red', sys.stderr)} {line}", err=True)


def styled(text: str, colour: str, stream: TextIO) -> str:
    """Color the text if ``stream`` is a terminal that wants color (no-color.org)."""
    wanted = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return click.style(text, fg=colour) if wanted else text
