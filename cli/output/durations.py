"""Times as people write them: 30m, 2h, 7d."""

import re
from collections.abc import Callable
from datetime import timedelta

import click

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


def between(shortest: timedelta, longest: timedelta, rule: str) -> Callable[[click.Context, click.Parameter, str], int]:
    """A callback that makes seconds of it. ``rule`` says the bounds in words."""

    def read(context: click.Context, parameter: click.Parameter, value: str) -> int:
        found = re.fullmatch(r"(\d{1,9}) *(s|min|m|h|d)", value.strip())
        if found is None:
            raise click.BadParameter(f"{value!r} is not a time such as 30m, 1h or 7d", context, parameter)
        seconds = int(found[1]) * _UNITS[found[2]]
        if not shortest.total_seconds() <= seconds <= longest.total_seconds():
            raise click.BadParameter(rule, context, parameter)
        return seconds

    return read
