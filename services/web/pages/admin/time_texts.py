"""Format times for rows that templates and live events share. Pure."""

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
