"""Reads the header ``Retry-After`` of other servers: seconds, or a date (RFC 9110, section 10.2.3). Pure."""

import email.utils


def read(text: str | None, now: float) -> float | None:
    """Return seconds, at least 0; None for anything else. ``now``: in seconds since 1970."""
    if text is None:
        return None
    text = text.strip()[:64]
    if text.isascii() and text.replace(".", "", 1).isdecimal():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
