"""Makes API keys and tells what may be known of one. Pure but for the randomness; `shared.identity.credentials` has the written form.

A key has 256 random bits, so it needs no slow hash; the HMAC means that a copy of the database alone cannot even confirm a
key that somebody found.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from shared import errors
from shared.api.auth import KeyKind
from shared.identity import credentials
from shared.types import Credential

_PREVIEW_HEAD, _PREVIEW_TAIL = 12, 4


@dataclass(frozen=True, slots=True)
class Mark:
    """All that is stored of a secret."""

    #: HMAC-SHA256, hex.
    key_hash: str
    #: The first and the last characters, to recognise a key by.
    preview: str


def generate(kind: KeyKind = KeyKind.LIVE) -> Credential:
    characters = random_text()
    return Credential(credentials.PREFIXES[kind] + characters + credentials.checksum(characters))


def random_text() -> str:
    """256 random bits in base62."""
    return "".join(secrets.choice(credentials.ALPHABET) for _ in range(credentials.RANDOM_CHARACTERS))


def check(text: str) -> None:
    """Raises NotAuthenticated for what cannot be a key; asks nobody."""
    if not credentials.looks_like_api_key(text):
        raise errors.NotAuthenticated(
            "this is not an API key: its checksum or its length is wrong", hint=f"copy the whole key, from {credentials.PREFIX} on"
        )


def check_first(text: str) -> None:
    """Raises BadRequest for what cannot be the first administrator's key."""
    if credentials.kind_of(text) != KeyKind.ADMIN:
        raise errors.BadRequest(
            "it is no administrator's key", hint=f"{credentials.PREFIXES[KeyKind.ADMIN]}, 43 random characters and their checksum"
        )


def mark(key: Credential, pepper: str) -> Mark:
    return Mark(digest(key, pepper), preview(key))


def digest(key: Credential, pepper: str) -> str:
    """What the database knows of a key: HMAC-SHA256, hex."""
    return hmac.digest(pepper.encode(), key.encode(), hashlib.sha256).hex()


def preview(key: Credential) -> str:
    """The first 12 and the last 4 characters, to recognise a key by; more than 200 bits stay unknown."""
    return f"{key[:_PREVIEW_HEAD]}…{key[-_PREVIEW_TAIL:]}"


def ago(seconds: float) -> str:
    """Such as `3 days ago`, for people."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if (count := int(seconds // size)) > 0:
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
