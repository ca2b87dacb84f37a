"""A click group that imports a command on first use, so that `aicli infer` does not import the other commands."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click
from click.exceptions import NoSuchCommand

from cli import missing_packages
from cli.output import print_format
from shared import errors


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
    """``places`` maps a command's name to `module:attribute`. Commands are listed in this order. ``sections`` maps the headings of the help
    to such places."""

    def __init__(
        self,
        *args: object,
        places: Mapping[str, str] | None = None,
        sections: Mapping[str, Mapping[str, str]] | None = None,
        **extra: object,
    ) -> None:
        super().__init__(*args, **extra)  # type: ignore[arg-type]  # click's own parameters, passed through unread
        self._sections = sections or {"Commands": places or {}}
        self._places = {name: place for section in self._sections.values() for name, place in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._places]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._places.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        try:
            command = getattr(import_module(module), attribute)
        except ImportError as error:
            if (missing := missing_packages.explain(error)) is None:
                raise
            return _UninstalledCommand(cmd_name, missing)
        assert isinstance(command, click.Command)
        print_format.add_to_group(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = {name: self.get_command(ctx, name) for name in self._places}
        # One width for all sections, so that their columns are aligned.
        longest = max(map(len, found))
        limit = formatter.width - 6 - longest
        for heading, places in self._sections.items():
            rows = [(name.ljust(longest), command.get_short_help_str(limit)) for name in places if (command := found[name]) is not None]
            with formatter.section(heading):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            # click would suggest only commands that are already imported.
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None
