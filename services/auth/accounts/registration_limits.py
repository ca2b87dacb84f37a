"""Limit registrations per address and hour, and per inviter and day: an account brings credits, and an attempt reveals whether a name is
taken."""

from services.auth.sessions import hourly_limits
from services.auth.sessions.hourly_limits import HourlyLimits
from shared import addresses, errors
from shared.stores.cache import Cache
from shared.types import NodeId, TenantId, UserId

#: Per inviter and per organization, while registration is closed: without mail the inviter sees the codes and could use them all.
MOST_INVITED_A_DAY = 20
_DAY_SECONDS = 24 * 3600


class RegistrationLimits:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache, most: int) -> None:
        self._registrations = HourlyLimits(cache, "registrations")
        self._invitations = HourlyLimits(cache, "invited", seconds=_DAY_SECONDS)
        self._most = most

    async def charge(self, address: str, node: NodeId) -> None:
        """Count before anything is looked up. Raises Limited. Loopback addresses are not counted."""
        seen = addresses.parse(address)
        if seen is not None and seen.is_loopback:
            return
        wait_seconds = await self._registrations.count(hourly_limits.requester_of(address, node), self._most)
        if wait_seconds:
            raise errors.Limited(
                "too many accounts were requested from your address",
                hint=f"wait; {self._most} per hour are allowed. An administrator can add people at any time",
                retry_after_seconds=wait_seconds,
            )

    async def charge_inviter(self, inviter: UserId, organisation: TenantId) -> None:
        """Raises Limited."""
        for subject in (inviter, organisation):
            wait_seconds = await self._invitations.count(str(subject), MOST_INVITED_A_DAY)
            if wait_seconds:
                raise errors.Limited(
                    f"{MOST_INVITED_A_DAY} people have registered with this organization's or this inviter's invitations within a day",
                    hint="try again tomorrow, or ask an administrator for an account",
                    retry_after_seconds=wait_seconds,
                )
