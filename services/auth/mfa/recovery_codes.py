"""Recovery codes: ten of 60 random bits, each good once in place of a code. Pure but for the randomness.

Kept as an HMAC under the pepper of auth and bound to their owner, so that a copy of the database alone cannot be searched for them.
"""

import hashlib
import hmac
import secrets

from shared.types import UserId

COUNT = 10
#: Without i, l, o and u: what is copied from paper has no doubtful letters.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_READ_AS = str.maketrans({"i": "1", "l": "1", "o": "0", "-": None, " ": None})
_GROUP, _GROUPS = 4, 3


def new_codes() -> tuple[str, ...]:
    return tuple(_new_code() for _ in range(COUNT))


def digest(code: str, owner: UserId, pepper: str) -> str:
    """What is stored of it, in hex."""
    return hmac.digest(pepper.encode(), f"recovery code/{owner}/{normal(code)}".encode(), hashlib.sha256).hex()


def may_be(code: str) -> bool:
    """Anything else is not looked for."""
    typed = normal(code)
    return len(typed) == _GROUP * _GROUPS and set(typed) <= set(_ALPHABET)


def normal(code: str) -> str:
    return code.strip().lower().translate(_READ_AS)


def _new_code() -> str:
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_GROUP)) for _ in range(_GROUPS))
