"""Logins that wait for a person's approval in a browser (RFC 8628), in Valkey under hashes of their codes.

Once approved, a login is a login link whose token is the device code, so it ends with everything that ends links.
"""

import re
import secrets
from datetime import datetime

import msgspec

from services.auth import api_keys
from services.auth.sessions import session_store
from services.auth.sessions.session_store import SessionStore, StoredLoginLink
from shared import errors
from shared.api.auth import WaitingDeviceLogin

#: Long enough to install an authenticator app on the way.
LIFE_SECONDS = 900
#: Between polls, and by how much polls that are too early make it longer (RFC 8628 §3.5).
INTERVAL_SECONDS = 5
#: No vowels, so no words; nothing that looks alike (RFC 8628 §6.1). Eight have 34 bits; few guesses are allowed.
_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
_USER_CODE = re.compile(f"[{_LETTERS}]{{8}}")
_DEVICE_PREFIX = "aip_device_"
_MAX_TYPED = 40


class DeviceLogins:
    """Every method may raise Unavailable."""

    def __init__(self, sessions: SessionStore) -> None:
        self._sessions = sessions

    async def begin(self, machine: str, address: str, now: datetime) -> tuple[str, str]:
        """Return the device code and the user code."""
        device_code = _DEVICE_PREFIX + api_keys.random_text()
        while True:
            letters = "".join(secrets.choice(_LETTERS) for _ in range(8))
            facts = WaitingDeviceLogin(f"{letters[:4]}-{letters[4:]}", machine, address, now)
            stored = _hash(device_code), LIFE_SECONDS * 1000, _hash(letters), msgspec.json.encode(facts), INTERVAL_SECONDS
            if await self._sessions.run_device("begin", *stored):
                return device_code, facts.user_code

    async def why_not_open(self, device_code: str) -> errors.CallerError:
        """Count a poll of a login that is not approved. Return AuthorizationPending, SlowDown, DeviceLoginDenied or DeviceLoginExpired."""
        reply = await self._sessions.run_device("poll", _hash(device_code), INTERVAL_SECONDS)
        if reply is None:
            return expired()
        state, interval = reply[0], float(reply[1])
        if state == b"denied":
            return errors.DeviceLoginDenied("the login was refused in the browser", hint="run `aicli login` again, and approve it")
        if state == b"slow_down":
            return errors.SlowDown("asked too soon whether the login is approved", retry_after_seconds=interval)
        return errors.AuthorizationPending("the login is not approved yet", retry_after_seconds=interval)

    async def find(self, user_code: str) -> WaitingDeviceLogin:
        """Raises NotFound."""
        return _facts(await self._sessions.run_device("find", _hash(_letters(user_code))))

    async def deny(self, user_code: str) -> WaitingDeviceLogin:
        """Raises NotFound."""
        return _facts(await self._sessions.run_device("decide", _hash(_letters(user_code)), ""))

    async def approve(self, user_code: str, link: StoredLoginLink) -> WaitingDeviceLogin:
        """Raises NotFound."""
        life, most = session_store.LINK_SECONDS * 1000, session_store.MAX_LINKS
        stored = str(link.user_id), msgspec.json.encode(link), life, most
        return _facts(await self._sessions.run_device("decide", _hash(_letters(user_code)), *stored))


_hash = api_keys.hash_token


def _letters(typed: str) -> str:
    """Return the letters of a typed code. Raises NotFound if it can't be one."""
    letters = re.sub(r"[\s-]", "", typed[:_MAX_TYPED]).upper()
    if not _USER_CODE.fullmatch(letters):
        raise _unknown()
    return letters


def _facts(reply: bytes | None) -> WaitingDeviceLogin:
    if reply is None:
        raise _unknown()
    return msgspec.json.decode(reply, type=WaitingDeviceLogin)


def expired() -> errors.DeviceLoginExpired:
    return errors.DeviceLoginExpired("this login was used or has expired", hint="begin a new one with `aicli login`")


def _unknown() -> errors.NotFound:
    return errors.NotFound("no login waits with this code", hint="compare it with the terminal; it expires after 15 minutes")
