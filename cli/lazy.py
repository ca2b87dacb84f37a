"""A click group that imports a command when it is used: `aicli infer` pays for no other command's imports."""

from collections.abc import Mapping
from importlib import import_module

import click


class LazyGroup(click.Group):
    """``places`` maps a command's name to `module:attribute`. Commands appear in the order of the table."""

    def __init__(self, *args: object, places: Mapping[str, str], **extra: object) -> None:
        super().__init__(*args, **extra)  # type: ignore[arg-type]  # click's own parameters, passed through unread
        self._places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._places]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = self._places.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command
