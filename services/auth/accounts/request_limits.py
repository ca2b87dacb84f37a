"""Limit how often accounts and password resets may be requested, counted in Valkey for all replicas.

An account brings credits, and an attempt reveals whether a name is taken.
"""

from pathlib import Path

from services.auth import api_keys
from shared import addresses, errors
from shared.stores.cache import Cache
from shared.types import NodeId, TenantId, UserId

#: Per inviter and per organization, while registration is closed: without mail the inviter sees the codes and could use them all.
MAX_INVITED_A_DAY = 20
#: Mails to reset a password per hour.
FOR_AN_ACCOUNT = 3
#: For one client address, whatever accounts it asks for.
FOR_AN_ADDRESS = 10
#: Invitations that one client address may look up per hour.
MAX_INVITATIONS_READ = 100
#: Logins that wait for approval in a browser: begun per hour by one client address and by one /48 of IPv6, and from loopback, where all
#: people may be behind a proxy; and codes that one user may enter.
MAX_DEVICE_LOGINS, MAX_DEVICE_LOGINS_OF_SITE, MAX_DEVICE_LOGINS_OF_LOOPBACK, MAX_DEVICE_CODES = 60, 600, 10_000, 60
_SCRIPT = "hourly"
_DAY_SECONDS = 24 * 3600


class HourlyLimits:
    """May raise Unavailable. ``what`` separates its counters from all others."""

    def __init__(self, cache: Cache, what: str, *, seconds: int = 3600) -> None:
        self._cache = cache
        self._what = what
        self._seconds = seconds
        cache.script(_SCRIPT, Path(__file__).with_name("hourly_limits.lua").read_text(encoding="utf-8"))

    async def count(self, subject: str, most: int) -> float:
        """Return 0 if it was counted, otherwise the seconds to wait."""
        # Hashed, because an address is personal data.
        key = f"auth:{self._what}:{api_keys.hash_token(subject)}"
        return int(await self._cache.run(_SCRIPT, [key], [most, self._seconds * 1000])) / 1000

    async def charge(self, subject: str, most: int, message: str, *, hint: str) -> None:
        """Raises Limited."""
        if wait_seconds := await self.count(subject, most):
            raise errors.Limited(message, hint=hint, retry_after_seconds=wait_seconds)


def requester_of(address: str, node: NodeId) -> str:
    """Return what to count under: the address, or its network for IPv6, or the calling node if there is no address."""
    return addresses.client_network(address) or str(node)


class RegistrationLimits:
    """Limits registrations per address and hour, and invited ones per inviter, organization and day. Every method may raise Unavailable."""

    def __init__(self, cache: Cache, most: int) -> None:
        self._registrations = HourlyLimits(cache, "registrations")
        self._invitations = HourlyLimits(cache, "invited", seconds=_DAY_SECONDS)
        self._most = most

    async def charge(self, address: str, node: NodeId) -> None:
        """Count before anything is looked up. Raises Limited. Loopback addresses are not counted."""
        seen = addresses.parse(address)
        if seen is not None and seen.is_loopback:
            return
        hint = f"wait; {self._most} per hour are allowed. An administrator can add people at any time"
        message = "too many accounts were requested from your address"
        await self._registrations.charge(requester_of(address, node), self._most, message, hint=hint)

    async def charge_inviter(self, inviter: UserId, organisation: TenantId) -> None:
        """Raises Limited."""
        message = f"{MAX_INVITED_A_DAY} people have registered with this organization's or this inviter's invitations within a day"
        hint = "try again tomorrow, or ask an administrator for an account"
        for subject in (inviter, organisation):
            await self._invitations.charge(str(subject), MAX_INVITED_A_DAY, message, hint=hint)


class MailLimits:
    """How often password resets may be requested. Every method may raise Unavailable."""

    def __init__(self, cache: Cache) -> None:
        self._requested = HourlyLimits(cache, "reset_mails")

    async def charge_address(self, requester: str) -> None:
        """Raises Limited, which reveals nothing about any account."""
        message, hint = "too many password resets were requested from your address", f"wait; {FOR_AN_ADDRESS} per hour are allowed"
        await self._requested.charge(f"from:{requester}", FOR_AN_ADDRESS, message, hint=hint)

    async def charge_account(self, user_id: UserId) -> None:
        """Count a mail that its recipient asks for while logged in. Raises Limited."""
        message, hint = "too many emails were requested for your account", f"wait; {FOR_AN_ACCOUNT} per hour are allowed"
        await self._requested.charge(f"to:{user_id}", FOR_AN_ACCOUNT, message, hint=hint)

    async def may_mail(self, user_id: UserId) -> bool:
        """Count the mail and return whether to send it. An error would reveal that the account exists."""
        return not await self._requested.count(f"to:{user_id}", FOR_AN_ACCOUNT)
