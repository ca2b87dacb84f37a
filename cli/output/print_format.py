"""The options -o and --json, and which format the running command prints.

The format is in click's context, where options of any level put it: `aicli --json nodes` is `aicli nodes --json`.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import cast

import click

from cli.options import Command

_KEY = "cli.output.format"


class PrintFormat(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    CSV = "csv"

    @property
    def is_data(self) -> bool:
        """Whether it is for programs."""
        return self not in (PrintFormat.TABLE, PrintFormat.WIDE)


_KINDS = click.Choice([kind.value for kind in PrintFormat])


def current() -> PrintFormat:
    context = click.get_current_context(silent=True)
    return PrintFormat.TABLE if context is None else PrintFormat(context.meta.get(_KEY, PrintFormat.TABLE))


def output_options(json_help: str) -> Callable[[Command], Command]:
    """Add -o and --json to a command; its parameter ``as_json`` says whether to print data instead of text."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(*arguments: object, **options: object) -> object:
            return command(*arguments, as_json=current().is_data, **options)

        return cast("Command", _json_option(json_help)(_format_option()(run)))

    return decorate


def format_options(group: Command) -> Command:
    """Add -o and --json to a group, for its commands."""
    return _json_option("Same as -o json.")(_format_option()(group))


def add_to_group(command: click.Command) -> None:
    """Let ``command`` and every group below it take -o and --json before the name of a command, without listing them."""
    if not isinstance(command, click.Group):
        return
    if not any("--json" in parameter.opts for parameter in command.params):
        command.params += [
            click.Option(["-o", "print_format"], type=_KINDS, expose_value=False, callback=_set_format, hidden=True),
            click.Option(["--json"], is_flag=True, expose_value=False, callback=choose(PrintFormat.JSON), hidden=True),
        ]
    for below in command.commands.values():
        add_to_group(below)


def wants_json(arguments: Sequence[str]) -> bool:
    """Whether the command line, which may be wrong, asks for JSON: then errors are JSON too."""
    known = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    pairs = itertools.pairwise(known)
    return not {"--json", "-ojson"}.isdisjoint(known) or ("-o", "json") in pairs


def _json_option(text: str) -> Callable[[Command], Command]:
    return click.option("--json", is_flag=True, expose_value=False, callback=choose(PrintFormat.JSON), help=text)


def _format_option() -> Callable[[Command], Command]:
    text = "Output format: table, wide (all columns, full values), json, yaml or csv."
    return click.option("-o", "print_format", metavar="FORMAT", type=_KINDS, expose_value=False, callback=_set_format, help=text)


def choose(value: PrintFormat) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Return the callback of a flag that stands for ``value``."""
    return lambda context, parameter, is_set: _set_format(context, parameter, value if is_set else None)


def _set_format(context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    before = context.meta.setdefault(_KEY, value)
    if before != value:
        raise click.UsageError(f"use either {_spelled(before)} or {_spelled(value)}, not both", context)


def _spelled(value: str) -> str:
    return "--json" if value == PrintFormat.JSON else f"-o {value}"
