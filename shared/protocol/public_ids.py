"""Writes UUIDs as vendors' APIs have ids: a prefix and 26 characters of base32. Pure."""

import base64
import re
from uuid import UUID

_ID = re.compile(r"([a-z]+)[-_]([a-z2-7]{26})")


def encode(prefix: str, value: UUID, separator: str = "-") -> str:
    return f"{prefix}{separator}{base64.b32encode(value.bytes).decode().rstrip('=').lower()}"


def decode(prefix: str, text: str) -> UUID | None:
    """Return None for what isn't such an id."""
    found = _ID.fullmatch(text)
    if found is None or found[1] != prefix:
        return None
    return UUID(bytes=base64.b32decode(found[2].upper() + "=" * 6))
