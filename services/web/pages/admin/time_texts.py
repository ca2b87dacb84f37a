"""Format times and measures for rows that templates and live events share. Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime


def moment(at: datetime) -> str:
    """Format a time to the minute, with the year."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def second(at: datetime) -> str:
    """Format a time to the second."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M:%S} UTC"


def soon(at: datetime) -> str:
    """Format a time that is at most days away, without the year."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b, %H:%M} UTC"


def round_trip(milliseconds: float | None) -> str:
    """Format a round trip; empty without a link."""
    if milliseconds is None:
        return ""
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def labels(pairs: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))
