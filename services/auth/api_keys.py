"""Create API keys and their stored form. Pure but for the randomness; `shared.identity.credentials` defines the written form.

A key has 256 random bits, so it needs no slow hash. The HMAC means that a copy of the database alone cannot even confirm a key.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from shared import errors
from shared.api.auth import KeyKind
from shared.identity import credentials
from shared.types import Credential

NOT_A_KEY = "this is not an API key: its checksum or its length is wrong"
_PREVIEW_HEAD, _PREVIEW_TAIL = 12, 4


@dataclass(frozen=True, slots=True)
class Mark:
    """What is stored instead of a secret."""

    key_hash: str
    #: For people to recognize the key by.
    preview: str


def generate(kind: KeyKind = KeyKind.LIVE) -> Credential:
    characters = random_text()
    return Credential(credentials.PREFIXES[kind] + characters + credentials.checksum(characters))


def random_text(characters: int = credentials.RANDOM_CHARACTERS) -> str:
    """Return random base62; the default length has 256 bits."""
    return "".join(secrets.choice(credentials.ALPHABET) for _ in range(characters))


def hash_token(text: str) -> str:
    """Return the hash under which a token or a counted name is stored. A token has 256 random bits, so it needs no slower hash."""
    return hashlib.sha256(text.encode()).hexdigest()


def check(text: str) -> None:
    """Raises NotAuthenticated for a malformed key, without looking it up."""
    if not credentials.looks_like_api_key(text):
        raise errors.NotAuthenticated(NOT_A_KEY, hint=f"copy the whole key, from {credentials.PREFIX} on")


def check_first(text: str) -> None:
    """Raises BadRequest if this cannot be the first administrator's key."""
    if credentials.kind_of(text) != KeyKind.ADMIN:
        raise errors.BadRequest(
            "it is not an administrator's key", hint=f"{credentials.PREFIXES[KeyKind.ADMIN]}, 43 random characters and their checksum"
        )


def mark(key: Credential, pepper: str) -> Mark:
    return Mark(digest(key, pepper), preview(key))


def digest(key: Credential, pepper: str) -> str:
    """Return the HMAC-SHA256 under which a key is stored, in hex."""
    return hmac.digest(pepper.encode(), key.encode(), hashlib.sha256).hex()


def preview(key: Credential) -> str:
    """Return the first 12 and the last 4 characters; more than 200 bits stay secret."""
    return f"{key[:_PREVIEW_HEAD]}…{key[-_PREVIEW_TAIL:]}"


def ago(seconds: float) -> str:
    """Describe a duration, such as `3 days ago`."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")):
        if (count := int(seconds // size)) > 0:
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"
