"""Read the age of log lines from the date at their start, for our services, NATS, PostgreSQL and Valkey. Pure.

Days are exact enough: the programs write in different time zones, and logs are kept for months.
"""

import re
from collections.abc import Iterable
from datetime import date

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
#: 2026-11-21 or 2026/11/21, and Valkey's 21 Nov 2026.
_DAY = re.compile(rb"\b(\d{4})([-/])(\d\d)\2(\d\d)|\b(\d\d) (" + b"|".join(_MONTHS) + rb") (\d{4})\b")
#: Only a date within these first characters is the line's own; later ones are part of its text.
_START_BYTES = 80


def day_of(line: bytes) -> date | None:
    """Return the day of a line; None if it shows none."""
    found = _DAY.search(line, 0, _START_BYTES)
    if found is None:
        return None
    year, _, month, day, day_first, name, year_last = found.groups()
    try:
        if name is not None:
            return date(int(year_last), _MONTHS.index(name) + 1, int(day_first))
        return date(int(year), int(month), int(day))
    except ValueError:
        return None


def old_bytes(lines: Iterable[bytes], oldest: date) -> int | None:
    """Return the length of the beginning that was written before ``oldest``; None if no line shows a day.

    A line without a day, such as one of a traceback, belongs to the line before it. Stops reading at the first line to keep.
    """
    position = 0
    old: int | None = None
    for line in lines:
        day = day_of(line)
        if day is not None and day >= oldest:
            return old or 0
        position += len(line)
        if day is not None or old is not None:
            old = position
    return old
