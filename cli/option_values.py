"""Click callbacks that parse durations such as 30m, 2h and 7d, and labels of machines; and a command with negative numbers as arguments."""

import re
from collections.abc import Callable

import click

from cli import options

_WORDS = {"day": 86_400, "hour": 3600, "minute": 60, "second": 1}
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
#: As in shared.api.membership.Label, so that mistakes are found before anything is sent.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


def read_seconds(context: click.Context, parameter: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"(\d{1,9}) *(s|min|m|h|d)", value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a time such as 30m, 1h or 7d", context, parameter)
    return int(found[1]) * _UNITS[found[2]]


def duration(subject: str, request: options.Request, field: str) -> Callable[[click.Context, click.Parameter, str], int]:
    """Return a callback that parses seconds for this field of the request. ``subject`` begins the sentence about its bounds."""
    bounds = options.WholeNumber(request, field)

    def read(context: click.Context, parameter: click.Parameter, value: str) -> int:
        seconds = read_seconds(context, parameter, value)
        if not bounds.min <= seconds <= bounds.max:
            raise click.BadParameter(f"{subject} between {_words(bounds.min)} and {_words(bounds.max)}", context, parameter)
        return seconds

    return read


def _words(seconds: float) -> str:
    """Return 1 minute or 30 days."""
    size, unit = next((size, unit) for unit, size in _WORDS.items() if seconds >= size and not seconds % size)
    number = round(seconds / size)
    return f"{number} {unit}{'s' * (number != 1)}"


def read_labels(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Parse KEY=VALUE: several with commas, the option several times."""
    pairs = dict(pair.partition("=")[::2] for value in values for pair in value.split(","))
    for key, content in pairs.items():
        if not _LABEL.fullmatch(key) or not _LABEL.fullmatch(content):
            shown = f"{key}={content}"
            raise click.BadParameter(f"{shown!r} is not KEY=VALUE, of letters, digits, '.', '_', '/' and '-'", context, parameter)
    return pairs


class NumberTakingCommand(click.Command):
    """Takes arguments such as -5, which look like options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        without = ["0" if re.match(r"-[\d.]", argument) else argument for argument in args]
        if without != args:
            self.make_parser(ctx).parse_args(without)  # rejects misspelled options
            ctx.ignore_unknown_options = True
        return super().parse_args(ctx, args)
