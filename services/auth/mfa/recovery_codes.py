"""Recovery codes: ten codes of 60 random bits, each usable once. Pure but for the randomness.

Stored as an HMAC with auth's pepper, bound to the owner, so a copy of the database alone is not enough to search for them.
"""

import hashlib
import hmac
import secrets

from shared.types import UserId

COUNT = 10
#: Without i, l, o and u, which are misread on paper.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_READ_AS = str.maketrans({"i": "1", "l": "1", "o": "0", "-": None, " ": None})
_GROUP, _GROUPS = 4, 3


def new_codes() -> tuple[str, ...]:
    return tuple(_new_code() for _ in range(COUNT))


def digest(code: str, owner: UserId, pepper: str) -> str:
    return hmac.digest(pepper.encode(), f"recovery code/{owner}/{normal(code)}".encode(), hashlib.sha256).hex()


def may_be(code: str) -> bool:
    typed = normal(code)
    return len(typed) == _GROUP * _GROUPS and set(typed) <= set(_ALPHABET)


def normal(code: str) -> str:
    return code.strip().lower().translate(_READ_AS)


def _new_code() -> str:
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))
