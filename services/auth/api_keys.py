"""Makes API keys and tells what may be known of one. Pure but for the randomness; `shared.credentials` has the written form.

A key has 256 random bits, so it needs no slow hash; the HMAC means that a copy of the database alone cannot even confirm a
key that somebody found.
"""

import hashlib
import hmac
import secrets

from shared import credentials, errors
from shared.types import Credential

_PREVIEW_HEAD, _PREVIEW_TAIL = 12, 4


def generate() -> Credential:
    characters = random_text()
    return Credential(credentials.PREFIX + characters + credentials.checksum(characters))


def random_text() -> str:
    """256 random bits in base62."""
    return "".join(secrets.choice(credentials.ALPHABET) for _ in range(credentials.RANDOM_CHARACTERS))


def check(text: str) -> None:
    """Raises NotAuthenticated for what cannot be a key; asks nobody."""
    if not credentials.looks_like_api_key(text):
        raise errors.NotAuthenticated(
            "this is not an API key: its checksum or its length is wrong", hint=f"copy the whole key, from {credentials.PREFIX} on"
        )


def digest(key: Credential, pepper: str) -> str:
    """What the database knows of a key: HMAC-SHA256, hex."""
    return hmac.digest(pepper.encode(), key.encode(), hashlib.sha256).hex()


def preview(key: Credential) -> str:
    """The first 12 and the last 4 characters, to recognise a key by; 214 bits stay unknown."""
    return f"{key[:_PREVIEW_HEAD]}…{key[-_PREVIEW_TAIL:]}"
