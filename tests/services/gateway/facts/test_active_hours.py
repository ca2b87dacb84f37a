"""The active hours of conditions."""

from datetime import UTC, datetime

import pytest

from services.gateway.facts import active_hours


@pytest.mark.parametrize(
    ("hours", "moment", "inside"),
    [
        # 2026-11-23 is a Monday.
        ("Mon-Fri 08:00-18:00 UTC", (2026, 11, 23, 8, 0), True),
        ("Mon-Fri 08:00-18:00 UTC", (2026, 11, 23, 7, 59), False),
        ("Mon-Fri 08:00-18:00 UTC", (2026, 11, 27, 17, 59), True),
        ("Mon-Fri 08:00-18:00 UTC", (2026, 11, 27, 18, 0), False),
        ("Mon-Fri 08:00-18:00 UTC", (2026, 11, 28, 12, 0), False),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", (2026, 11, 23, 7, 0), True),
        ("Mon-Fri 08:00-18:00 Europe/Berlin", (2026, 7, 20, 6, 0), True),  # summer time
        ("Mon-Fri 08:00-18:00 Europe/Berlin", (2026, 7, 20, 5, 59), False),
        ("Sat-Mon 00:00-24:00 UTC", (2026, 11, 22, 23, 59), True),
        ("Sat-Mon 00:00-24:00 UTC", (2026, 11, 24, 0, 0), False),
        ("22:00-06:00 UTC", (2026, 11, 25, 23, 0), True),
        ("22:00-06:00 UTC", (2026, 11, 25, 5, 59), True),
        ("22:00-06:00 UTC", (2026, 11, 25, 6, 0), False),
        ("Fri 22:00-06:00 UTC", (2026, 11, 28, 5, 0), True),
        ("Fri 22:00-06:00 UTC", (2026, 11, 27, 5, 0), False),
        ("Sun 22:00-06:00 Asia/Kathmandu", (2026, 11, 22, 16, 15), True),
        ("Sun 22:00-06:00 Asia/Kathmandu", (2026, 11, 22, 16, 14), False),
    ],
)
def test_hours(hours: str, moment: tuple[int, int, int, int, int], *, inside: bool) -> None:
    year, month, day, hour, minute = moment
    assert active_hours.parse(hours).include(datetime(year, month, day, hour, minute, tzinfo=UTC)) is inside


@pytest.mark.parametrize(
    ("hours", "message"),
    [
        ("", "write days, hours and a time zone"),
        ("Mon-Fri 8:00-18:00 UTC", "write days, hours and a time zone"),
        ("Mon-Fri 08:00-18:00", "write days, hours and a time zone"),
        ("Mon-Fry 08:00-18:00 UTC", "Fry is not a day"),
        ("08:00-08:00 UTC", "two different times"),
        ("08:61-09:00 UTC", "two different times"),
        ("24:00-08:00 UTC", "two different times"),
        ("08:00-18:00 Europe/Atlantis", "there is no time zone 'Europe/Atlantis'"),
        ("08:00-18:00 ../../etc/passwd", "write days, hours and a time zone"),
        ("08:00-18:00 /etc/localtime", "there is no time zone"),
    ],
)
def test_mistakes(hours: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        active_hours.parse(hours)
