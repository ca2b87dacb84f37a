"""Moments, amounts and states in words, for rows that a template and an event stream both show. Pure."""

from datetime import UTC, datetime

from shared import amounts

#: For what has no value.
NOTHING = "–"


def moment(at: datetime) -> str:
    """To the minute; the year stands there because audit rows and certificates reach over years."""
    at = at.astimezone(UTC)
    return f"{at.day} {at:%b %Y, %H:%M} UTC"


def ago(at: datetime, now: datetime) -> str:
    """Roughly, so that a row that nobody touches changes seldom."""
    seconds = max(0, int((now - at).total_seconds()))
    for size, word in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {word}"
    return "just now"


def round_trip(milliseconds: float | None) -> str:
    if milliseconds is None:
        return NOTHING
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


def labels(pairs: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(pairs.items()))


def credits(micro: int) -> str:
    """A field's value: what ``amounts.read`` reads as the same amount again."""
    return amounts.written(micro)
