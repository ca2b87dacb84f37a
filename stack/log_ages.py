"""How old the lines of a log are, by the day that each shows at its start: ours, NATS's, PostgreSQL's and Valkey's. Pure.

Days and not moments: the programs write in different zones, and a log is kept for months.
"""

import re
from collections.abc import Iterable
from datetime import date

_MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")
#: 2026-11-21 or 2026/11/21, and Valkey's 21 Nov 2026.
_DAY = re.compile(rb"\b(\d{4})([-/])(\d\d)\2(\d\d)|\b(\d\d) (" + b"|".join(_MONTHS) + rb") (\d{4})\b")
#: Where a line's own time stands; further on, a date is part of what it tells.
_START_BYTES = 80


def day_of(line: bytes) -> date | None:
    """When it was written; None for a line that does not say so."""
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
    """How long the beginning is that was written before ``oldest``; None where no line shows a day.

    A line without a day, such as one of a traceback, belongs to the one before it. Reads no further than to the first that stays.
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
