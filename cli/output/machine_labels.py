"""Labels of a machine on the command line: what its certificate says of it beside who it is."""

import re

import click

#: As shared.api.membership.Label has them, so that a mistake is found before anything is asked.
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


def read(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """A click callback: KEY=VALUE, several with commas, the option several times."""
    pairs = dict(each.partition("=")[::2] for value in values for each in value.split(","))
    for key, content in pairs.items():
        if not _LABEL.fullmatch(key) or not _LABEL.fullmatch(content):
            shown = f"{key}={content}"
            raise click.BadParameter(f"{shown!r} is not KEY=VALUE, of letters, digits, '.', '_', '/' and '-'", context, parameter)
    return pairs
