"""How often a password or a code may be guessed, counted in Valkey for all replicas.

Strangers have 5 guesses at an account from one address in 15 minutes, and 10 from all addresses; a window that was used up makes the next
one twice as long, up to an hour. An address has 30 in 15 minutes, for any accounts. After 100 in a row the account's passwords are not
compared any more before it is reset or left alone for three days (NIST SP 800-63B-4 §3.2.2). A browser that has signed in to the account
before (`known_browsers`) has 10 separate guesses and none of the others' limits, so that no stranger can lock the owner out.

A guess is charged before its hash is compared and given back by a success, so that many at once get no further; one whose hash could not
be compared is given back alone.
"""

import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shared import addresses, errors
from shared.stores.cache import Cache
from shared.types import UserId

#: Of an account: of all strangers together, and of each browser that has signed in before.
GUESSES = 10
#: Less than that, so that a stranger with one address leaves the owner some, also in a new browser.
GUESSES_OF_ONE_ADDRESS = 5
WINDOW_SECONDS = 900
LONGEST_WINDOW_SECONDS = 3600
MOST_IN_A_ROW = 100
#: Bounds what names that nobody has may leave in Valkey, and makes the row no lock for ever.
ROW_SECONDS = 3 * 24 * 3600
#: Long enough to know how long the next window is. There may be as many of these as guesses in the mesh.
ADDRESS_ROW_SECONDS = 2 * LONGEST_WINDOW_SECONDS
ADDRESS_GUESSES = 30
#: Of all accounts from all addresses in 15 minutes: a botnet with an address for each guess.
MESH_GUESSES = 10_000

_CHARGE, _FORGIVE, _GIVE_BACK = "failed_logins", "failed_logins_forgiven", "failed_logins_given_back"
_MESH_KEY = "auth:failed_logins:mesh"
#: Of the name of a row or a window: no two of one account are alike.
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class Guess:
    """One that was charged, and to what: to be given back there and nowhere else."""

    keys: tuple[str, str, str, str]
    #: Row and window of the first row and of the account's; then the ends of the windows of address and mesh.
    charged_to: tuple[bytes | int, ...]


class FailedLogins:
    """Without Valkey nobody logs in with a password; keys go on working. Every method may raise Unavailable."""

    def __init__(self, cache: Cache, *, clock: Callable[[], float] = time.time) -> None:
        self._cache = cache
        self._clock = clock
        for name in (_CHARGE, _FORGIVE, _GIVE_BACK):
            cache.script(name, Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8"))

    async def charge(self, account: str, address: str = "", browser: str = "") -> Guess:
        """``address`` empty is counted for none; ``browser`` is the id of one that has signed in to this account before, or empty. Raises
        Limited for who has to wait, and NotAllowed after too many in a row."""
        keys = _keys(account, address, browser)
        arguments = (
            int(self._clock() * 1000),
            WINDOW_SECONDS * 1000,
            LONGEST_WINDOW_SECONDS * 1000,
            MOST_IN_A_ROW,
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
                f"after {MOST_IN_A_ROW} failed logins in a row no password is taken for this account",
                hint="set a new password by mail, ask an administrator, or use an API key or a browser that has signed in before",
            )
        if full:
            full = b"browser" if full == b"first" and browser else full
            raise errors.Limited(f"too many failed logins {_WHERE[full]}", hint=_HINTS[full], retry_after_seconds=int(wait_ms) / 1000)
        return Guess(keys, tuple(charged_to))

    async def give_back(self, guess: Guess) -> None:
        """Nobody has looked whether it was right. Call it once. What was forgiven meanwhile, or went with its window, stays as it is."""
        await self._cache.run(_GIVE_BACK, guess.keys, guess.charged_to)

    async def forgive(self, account: str, address: str = "", browser: str = "") -> None:
        """The password or the code was right, or was reset."""
        await self._cache.run(_FORGIVE, _keys(account, address, browser), ())


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
    b"mesh": "wait, or use an API key; somebody is guessing passwords here",
}


def account_of(user_id: UserId | None, typed: str) -> str:
    """What to count under. One that does not exist is counted too, under what was typed: the answers must not differ."""
    return str(user_id or typed.lower())


def codes_of(user_id: UserId) -> str:
    """Codes are counted apart: who knows the password must not get more guesses by logging in with it."""
    return f"codes of {user_id}"


def _keys(account: str, address: str, browser: str) -> tuple[str, str, str, str]:
    # Hashed, because what people type into the field for their name is now and then their password.
    if browser:
        return (_key("browser", account, browser), "", "", "")
    # An address by its household: a provider gives 2^64 of IPv6 to each customer.
    household = addresses.household(address) or address
    return (
        _key("at", account, household) if address else "",
        f"auth:failed_logins:{_hash(account)}",
        f"auth:failed_logins:from:{_hash(household)}" if address else "",
        _MESH_KEY,
    )


def _key(what: str, account: str, of: str) -> str:
    return f"auth:failed_logins:{what}:{_hash(account)}:{_hash(of)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
