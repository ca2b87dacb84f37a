"""Print tables for people and data for scripts; errors as one line or one object.

Text from the mesh is printed without control characters: a name or an answer must not move the cursor, rename the window or write to the
clipboard.
"""

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TextIO, TypeAlias, TypeVar

import click
import msgspec

from cli.output import print_format, table_layout
from cli.output.print_format import PrintFormat
from cli.output.table_layout import LayoutColumn
from shared import amounts, csv_cells, plan_names
from shared.lists.columns import Column, Listing, Shown, Tone

Row = TypeVar("Row", bound=msgspec.Struct)
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"

#: C0 and C1 controls and DEL, except newline and tab.
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}

_ESCAPED_CONTROLS = {code: f"\\u{code:04x}" for code in range(127, 160)}


def printable(text: str) -> str:
    return text.translate(_CONTROLS)


def plain(value: object) -> Json:
    """Convert a message to JSON values, with snake_case names."""
    if isinstance(value, msgspec.Struct):
        fields = {name: plain(getattr(value, name)) for name in value.__struct_fields__}
        if isinstance(tier := fields.get("tier"), str):
            fields["tier"] = plan_names.name_of(tier)
        # Only changes that the recovery log lacks say so.
        return {name: part for name, part in fields.items() if name != "logged" or not part}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    built: Json = msgspec.to_builtins(value)
    return built


def show_json(value: Json, *, rows: Sequence[str] = ()) -> None:
    """Print data: JSON (indented at a terminal, one line in a pipe), or what -o asks for.

    CSV is one table: of an object with lists, ``rows`` names the lists whose items are its lines.
    """
    match print_format.current():
        case PrintFormat.YAML:
            from shared import yaml_text

            click.echo(yaml_text.render(value), nl=False)
        case PrintFormat.CSV:
            click.echo(_as_csv(value, rows), nl=False)
        case _:
            # JSON may contain C1 controls as they are, and terminals obey them.
            click.echo(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None).translate(_ESCAPED_CONTROLS))


def _as_csv(value: Json, lists: Sequence[str]) -> str:
    """Print one line for each object of a list; lists and objects inside are JSON."""
    if lists and isinstance(value, dict):
        rows = [{**({"list": name} if len(lists) > 1 else {}), **row} for name in lists for row in _objects(value[name])]
    else:
        rows = _objects(value if isinstance(value, list) else [value])
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text(names, ([_cell(row.get(name)) for name in names] for row in rows)) if names else ""


def _objects(value: Json) -> list[dict[str, Json]]:
    return [row if isinstance(row, dict) else {"value": row} for row in value] if isinstance(value, list) else []


def _cell(value: Json) -> csv_cells.Cell:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else value


def csv_text(names: Sequence[str], rows: Iterable[Sequence[csv_cells.Cell]]) -> str:
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (names, *rows):
        writer.writerow([csv_cells.harmless(printable(cell) if isinstance(cell, str) else cell) for cell in row])
    return text.getvalue()


def show_message(value: msgspec.Struct, text: str, *, as_json: bool) -> None:
    """Print a service's answer as data, or as ``text``."""
    if as_json:
        show_json(plain(value))
    else:
        click.echo(text)


@dataclass(frozen=True, slots=True)
class TableColumn(Generic[Row]):
    title: str
    #: Returns the text of a row's cell.
    cell: Callable[[Row], str]
    #: Returns the color of the cell, used at terminals only.
    style: Callable[[Row], str] | None = None
    #: 1 is always shown; of the others, the highest is hidden first in a narrow terminal.
    rank: int = 1
    #: Prose, which may wrap. Ids and names never do.
    wraps: bool = False
    #: Goes below its row if the table is too wide.
    below: bool = False
    #: The full value, for `-o wide`; None if ``cell`` is that.
    full: Callable[[Row], str] | None = None
    only_wide: bool = False


STYLES = {Tone.PLAIN: "", Tone.GOOD: "green", Tone.WARN: "yellow", Tone.BAD: "red", Tone.OFF: "dim"}


def show_list(rows: Sequence[Row], listing: Listing[Row], *, as_json: bool, create: str = "") -> None:
    """Print a list of the mesh as ``show_rows`` does. ``create``: how to make the first row."""

    def column(of: Column[Row]) -> TableColumn[Row]:
        text, style = lambda row: _shown(of.show(row)), lambda row: STYLES[of.tone(row)]
        return TableColumn(of.title.upper(), text, style, of.rank, of.wraps, of.below, only_wide=of.only_wide)

    show_rows(rows, [column(each) for each in listing.columns], as_json=as_json, empty=f"{listing.empty} {create}".rstrip())


def _shown(value: Shown) -> str:
    if isinstance(value, datetime):
        return moment(value)
    return names(value) if isinstance(value, tuple) else "–" if value is None else f"{value:,}" if isinstance(value, int) else value


def show_rows(rows: Sequence[Row], columns: Sequence[TableColumn[Row]], *, as_json: bool, empty: str) -> None:
    """Print a list as a table that fits the terminal, or as data. ``empty`` goes to stderr, so that a pipe gets no invalid row."""
    if as_json:
        show_json([plain(row) for row in rows])
        return
    if not rows:
        click.echo(empty, err=True)
        return
    is_wide = print_format.current() is PrintFormat.WIDE
    columns = [column for column in columns if is_wide or not column.only_wide]

    def text(column: TableColumn[Row], row: Row) -> str:
        return one_line((column.full or column.cell)(row) if is_wide else column.cell(row))

    def paint(cell: str, row: int, column: int) -> str:
        style = columns[column].style
        return styled(cell, "bold" if row < 0 else style(rows[row]) if style else "", sys.stdout)

    laid_out = table_layout.lay_out(
        [LayoutColumn(column.title, [text(column, row) for row in rows], column.rank, column.wraps, column.below) for column in columns],
        shutil.get_terminal_size().columns if is_terminal() and not is_wide else None,
        paint,
    )
    for line in laid_out.lines:
        click.echo(line)
    if laid_out.hidden:
        note(f"no space for {names(title.lower() for title in laid_out.hidden)}; use -o wide to see everything")


def is_terminal() -> bool:
    return sys.stdout.isatty()


def one_line(text: str) -> str:
    return printable(text).replace("\n", " ").replace("\t", " ")


def note(text: str) -> None:
    """Print a note on stderr, so that it never gets into a pipe."""
    click.echo(printable(text), err=True)


def moment(value: datetime | None) -> str:
    """Format a time in the user's time zone, to the second; a dash for None."""
    return "–" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def ago(value: datetime) -> str:
    return amounts.show_duration((datetime.now(UTC) - value).total_seconds())


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
    line = one_line(f"{message} – {hint}" if hint else message)
    click.echo(f"{styled('error:', 'red', sys.stderr)} {line}", err=True)


def styled(text: str, style: str, stream: TextIO) -> str:
    """Style the text with a color, `dim` or `bold`, if ``stream`` is a terminal that wants color (no-color.org)."""
    wanted = style and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if not wanted:
        return text
    return click.style(text, bold=style == "bold" or None, dim=style == "dim" or None, fg=None if style in ("bold", "dim") else style)
