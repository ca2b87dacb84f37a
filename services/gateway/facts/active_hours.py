"""Reads hours such as `Mon-Fri 08:00-18:00 Europe/Berlin`, and says whether a moment is within them. Pure."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORM = re.compile(r"(?:([A-Z][a-z]{2})(?:-([A-Z][a-z]{2}))? )?(\d\d):(\d\d)-(\d\d):(\d\d) ([A-Za-z0-9_+/-]{1,64})\Z")
_MINUTES_OF_DAY = 24 * 60


@dataclass(frozen=True, slots=True)
class ActiveHours:
    #: 0 is Monday.
    days: frozenset[int]
    #: Minutes of the day; the end is excluded. An end before the start is on the next day.
    start: int
    end: int
    zone: ZoneInfo

    def include(self, moment: datetime) -> bool:
        local = moment.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        if self.start < self.end:
            return local.weekday() in self.days and self.start <= minute < self.end
        # Hours over midnight belong to the day on which they begin.
        yesterday = (local - timedelta(days=1)).weekday()
        return (local.weekday() in self.days and minute >= self.start) or (yesterday in self.days and minute < self.end)


def parse(text: str) -> ActiveHours:
    """Raises ValueError, with a text for people."""
    found = _FORM.match(text)
    if found is None:
        raise ValueError("write days, hours and a time zone, such as Mon-Fri 08:00-18:00 Europe/Berlin")
    first, last, *numbers, zone = found.groups()
    for day in (first, last):
        if day is not None and day not in _DAYS:
            raise ValueError(f"{day} is not a day; use {', '.join(_DAYS)}")
    begin_hour, begin_minute, end_hour, end_minute = map(int, numbers)
    start, end = begin_hour * 60 + begin_minute, end_hour * 60 + end_minute
    if max(begin_minute, end_minute) > 59 or start >= _MINUTES_OF_DAY or end > _MINUTES_OF_DAY or start == end:
        raise ValueError("the hours must be two different times from 00:00 to 24:00")
    try:
        return ActiveHours(_days(first, last), start, end, ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone {zone!r}") from None


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin = _DAYS.index(first)
    count = 1 if last is None else (_DAYS.index(last) - begin) % 7 + 1
    return frozenset((begin + step) % 7 for step in range(count))
