"""Moments and measures in words, for rows that a template and an event stream both show. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime

#: For what has no value.
NOTHING = "–"


def moment(at: datetime) -> str:
    """To the minute, and with its year."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def soon(at: datetime) -> str:
    """Of what is days away at most, and so needs no year."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b, %H:%M} UTC"


def round_trip(milliseconds: float | None) -> str:
    """Empty where there is no link to measure it on."""
    if milliseconds is None:
        return ""
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def labels(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))
