"""Limit attempts to guess a password or a code, counted in Valkey for all replicas.

Strangers have 5 attempts per account and address in 15 minutes, and 10 per account from all addresses. A used-up window makes the next one
twice as long, up to an hour. An address has 30 attempts in 15 minutes for all accounts. After 100 failures in a row the password is no
longer compared until it is reset or three days have passed (NIST SP 800-63B-4 §3.2.2). A browser that has logged in before
(`session_opening.KnownBrowsers`) has 10 separate attempts and none of the other limits, so strangers cannot lock the owner out.

An attempt is charged before its hash is compared, so concurrent attempts gain nothing. A success resets the counters; an attempt whose
hash could not be compared is refunded.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.auth import api_keys
from shared import addresses, errors
from shared.stores.cache import Cache
from shared.types import UserId

#: Per account: for all strangers together, and for each browser that has logged in before.
GUESSES = 10
#: Fewer than that, so a stranger with one address leaves the owner some.
GUESSES_OF_ONE_ADDRESS = 5
WINDOW_SECONDS = 900
MAX_WINDOW_SECONDS = 3600
MAX_IN_A_ROW = 100
#: Bounds what unknown names leave in Valkey, and unlocks the account eventually.
ROW_SECONDS = 3 * 24 * 3600
#: Long enough to compute the next window. There may be as many rows as attempts in the mesh.
ADDRESS_ROW_SECONDS = 2 * MAX_WINDOW_SECONDS
ADDRESS_GUESSES = 30
#: For all accounts and addresses in 15 minutes: a botnet may have an address for each attempt.
MESH_GUESSES = 10_000

_CHARGE, _RESET, _REFUND = "failed_logins", "failed_logins_forgiven", "failed_logins_given_back"
_MESH_KEY = "auth:failed_logins:mesh"
#: In place of a counter that does not count, because every key has to have the hash tag of the others. The scripts get an empty key.
_NO_KEY = "auth:"
_DROP_NO_KEY = "for n, key in ipairs(KEYS) do if string.sub(key, -1) == ':' then KEYS[n] = '' end end\n"
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Guess:
    """A charged attempt, and the counters that it was charged to."""

    keys: tuple[str, str, str, str]
    #: Row and window of the first row and of the account's row, then the ends of the windows of address and mesh.
    charged_to: tuple[bytes | int, ...]


class FailedLogins:
    """Without Valkey nobody logs in with a password; API keys still work. Every method may raise Unavailable."""

    def __init__(self, cache: Cache, *, clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._clock = clock
        for name in (_CHARGE, _RESET, _REFUND):
            cache.script(name, _DROP_NO_KEY + Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8"))

    async def charge(self, account: str, address: str = "", browser: str = "") -> Guess:
        """An empty ``address`` is not counted. ``browser`` is the id of a browser that has logged in to this account, or empty. Raises
        Limited, and NotAllowed after too many failures in a row."""
        keys = _keys(account, address, browser)
        arguments = (
            int(self._clock() * 1000),
            WINDOW_SECONDS * 1000,
            MAX_WINDOW_SECONDS * 1000,
            MAX_IN_A_ROW,
            WINDOW_SECONDS * 1000,
            secrets.token_hex(_ID_BYTES),
            GUESSES if browser else GUESSES_OF_ONE_ADDRESS,
            (ROW_SECONDS if browser else ADDRESS_ROW_SECONDS) * 1000,
            GUESSES,
            ROW_SECONDS * 1000,
            ADDRESS_GUESSES,
            MESH_GUESSES,
        )
        full, wait_ms, *charged_to = await self._cache.run(_CHARGE, keys, arguments)
        if full == b"row":
            raise errors.NotAllowed(
                f"password logins are blocked for this account after {MAX_IN_A_ROW} failures in a row",
                hint="set a new password by mail, ask an administrator, or use an API key or a browser that has logged in before",
            )
        if full:
            full = b"browser" if full == b"first" and browser else full
            raise errors.Limited(f"too many failed logins {_WHERE[full]}", hint=_HINTS[full], retry_after_seconds=int(wait_ms) / 1000)
        return Guess(keys, tuple(charged_to))

    async def refund(self, guess: Guess) -> None:
        """Undo a charge whose password was not compared. Call it once. Counters that were reset since are left alone."""
        await self._cache.run(_REFUND, guess.keys, guess.charged_to)

    async def reset(self, account: str, address: str = "", browser: str = "") -> None:
        """Reset the counters: the password or the code was right, or was reset."""
        await self._cache.run(_RESET, _keys(account, address, browser), ())


_WHERE = {
    b"first": "for this account from your address",
    b"browser": "for this account from this browser",
    b"account": "for this account",
    b"address": "from your address",
    b"mesh": "in this mesh",
}
_HINTS = {
    b"first": f"wait, or use an API key; {GUESSES_OF_ONE_ADDRESS} attempts in {WINDOW_SECONDS // 60} minutes are allowed",
    b"browser": f"wait, or use an API key; {GUESSES} attempts in {WINDOW_SECONDS // 60} minutes are allowed",
    b"account": f"wait, or use an API key; {GUESSES} attempts in {WINDOW_SECONDS // 60} minutes are allowed",
    b"address": f"wait, or use an API key; {ADDRESS_GUESSES} attempts in {WINDOW_SECONDS // 60} minutes are allowed",
    b"mesh": "wait, or use an API key; someone is guessing passwords here",
}


def account_of(user_id: UserId | None, typed: str) -> str:
    """Return what to count under. Unknown names are counted too, because the answers must not differ."""
    return str(user_id or typed.lower())


def codes_of(user_id: UserId) -> str:
    """Codes are counted separately: knowing the password must not give more attempts at the code."""
    return f"codes of {user_id}"


def _keys(account: str, address: str, browser: str) -> tuple[str, str, str, str]:
    # Hashed, because people sometimes type their password into the name field.
    if browser:
        return (_key("browser", account, browser), _NO_KEY, _NO_KEY, _NO_KEY)
    # A provider gives each customer 2^64 addresses of IPv6, so each network counts as one client.
    network = addresses.client_network(address) or address
    return (
        _key("at", account, network) if address else _NO_KEY,
        f"auth:failed_logins:{api_keys.hash_token(account)}",
        f"auth:failed_logins:from:{api_keys.hash_token(network)}" if address else _NO_KEY,
        _MESH_KEY,
    )


def _key(what: str, account: str, of: str) -> str:
    return f"auth:failed_logins:{what}:{api_keys.hash_token(account)}:{api_keys.hash_token(of)}"
