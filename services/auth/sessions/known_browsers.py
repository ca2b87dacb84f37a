"""Marks browsers that have signed in to an account, so that a stranger's guesses are not theirs (OWASP: device cookies).

A mark is an id and its MAC, kept by the browser alone. It is bound to the account and to its password: somebody who knew the old password
cannot keep marks for guessing the next one. It opens nothing; it only gives separate guesses.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from services.auth import sealing
from services.auth.store import StoredAccount

_ID_BYTES = 8
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class KnownBrowsers:
    """Pure but for the randomness."""

    #: The first one signs; the others are of a former DATA_KEY.
    keys: tuple[bytes, ...]

    @classmethod
    def of(cls, data_key: str, data_key_old: str | None) -> "KnownBrowsers":
        """From the settings. Raises BadSettings."""
        former = () if data_key_old is None else (sealing.read_key(data_key_old, "DATA_KEY_OLD"),)
        return cls(tuple(sealing.derive(key, "known-browser") for key in (sealing.read_key(data_key), *former)))

    def read(self, mark: str, account: StoredAccount | None) -> str:
        """The id of a browser that has signed in to this account before; empty for any other."""
        browser, _, mac = mark.partition(".")
        if account is None or not browser or len(mark) > _LONGEST or not mark.isascii():
            return ""
        is_known = any(hmac.compare_digest(mac, _mac(key, browser, account)) for key in self.keys)
        return browser if is_known else ""

    def mark(self, browser: str, account: StoredAccount) -> str:
        return f"{browser}.{_mac(self.keys[0], browser, account)}"


def new_id() -> str:
    return secrets.token_hex(_ID_BYTES)


def _mac(key: bytes, browser: str, account: StoredAccount) -> str:
    password = hashlib.sha256((account.password_hash or "").encode()).hexdigest()
    return hmac.digest(key, f"{account.user.id}/{browser}/{password}".encode(), hashlib.sha256).hex()
