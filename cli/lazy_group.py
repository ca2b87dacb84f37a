"""A click group that imports a command on first use, so that `aicli infer` does not import the other commands."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click
from click.exceptions import NoSuchCommand

from cli import missing_packages
from cli.output import print_format
from shared import errors

#: `module:attribute` of a command, and its line of the help.
Place = tuple[str, str]


def load(name: str, place: str) -> click.Command:
    """Import a command. If a package is missing, the command says so."""
    module, _, attribute = place.partition(":")
    try:
        command = getattr(import_module(module), attribute)
    except ImportError as error:
        if (missing := missing_packages.explain(error)) is None:
            raise
        return _UninstalledCommand(name, missing)
    assert isinstance(command, click.Command)
    print_format.add_to_group(command)
    return command


class _UninstalledCommand(click.Command):
    """Stands for a command that another package brings."""

    def __init__(self, name: str, missing: errors.AimeshError) -> None:
        super().__init__(name, short_help=f"({missing.message})", add_help_option=False)
        self._missing = missing

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> click.Context:
        # Completion must stay silent.
        if not extra.get("resilient_parsing"):
            raise self._missing
        return super().make_context(info_name, args, parent, **extra)


class LazyGroup(click.Group):
    """``places`` maps a command's name to its place. Commands are listed in this order. ``sections`` maps the headings of the help to such
    places."""

    def __init__(
        self,
        *args: object,
        places: Mapping[str, Place] | None = None,
        sections: Mapping[str, Mapping[str, Place]] | None = None,
        **extra: object,
    ) -> None:
        super().__init__(*args, **extra)  # type: ignore[arg-type]  # click's own parameters, passed through unread
        self._sections = sections or {"Commands": places or {}}
        self._places = {name: place for section in self._sections.values() for name, place in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._places]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._places:
            return None
        return load(cmd_name, self._places[cmd_name][0])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # One width for all sections, so that their columns are aligned.
        longest = max(map(len, self._places))
        limit = formatter.width - 6 - longest
        for heading, places in self._sections.items():
            rows = [(name.ljust(longest), _line(place, limit)) for name, place in places.items()]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # click would suggest only commands that are already imported.
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None


def _line(place: Place, limit: int) -> str:
    """Return the line of the help, or what is missing if another package brings the command."""
    module, _, _ = place[0].partition(":")
    try:
        is_there = find_spec(module) is not None
    except ImportError:
        is_there = False
    missing = None if is_there else missing_packages.explain(ModuleNotFoundError(name=module))
    text = place[1] if missing is None else f"({missing.message})"
    return click.Command(None, help=text).get_short_help_str(limit)
