"""How many accounts one address may ask for in an hour, and one inviter in a day: each brings credits, and each attempt tells whether a
name is taken."""

from services.auth.sessions import hourly_limits
from services.auth.sessions.hourly_limits import HourlyLimits
from shared import addresses, errors
from shared.stores.cache import Cache
from shared.types import NodeId, TenantId, UserId

#: Of one inviter, and of one organization, while registration is closed: without mail the inviter sees the codes, and could use all of
#: them for themselves.
MOST_INVITED_A_DAY = 20
_DAY_SECONDS = 24 * 3600


class RegistrationLimits:
    """May raise Unavailable."""

    def __init__(self, cache: Cache, most: int) -> None:
        self._asked = HourlyLimits(cache, "registrations")
        self._invited = HourlyLimits(cache, "invited", seconds=_DAY_SECONDS)
        self._most = most

    async def charge(self, address: str, door: NodeId) -> None:
        """Counted before anything is looked up. Raises Limited. Who sits at the door's own machine is not counted."""
        seen = addresses.parse(address)
        if seen is not None and seen.is_loopback:
            return
        wait_seconds = await self._asked.count(hourly_limits.asker_of(address, door), self._most)
        if wait_seconds:
            raise errors.Limited(
                "too many accounts were asked for from your address",
                hint=f"wait; {self._most} in an hour are allowed. An administrator can add people at any time",
                retry_after_seconds=wait_seconds,
            )

    async def charge_inviter(self, inviter: UserId, organisation: TenantId) -> None:
        """Raises Limited."""
        for whom in (inviter, organisation):
            wait_seconds = await self._invited.count(str(whom), MOST_INVITED_A_DAY)
            if wait_seconds:
                raise errors.Limited(
                    f"{MOST_INVITED_A_DAY} people have registered with this organization's or this inviter's invitations within a day",
                    hint="try again tomorrow, or ask an administrator for an account",
                    retry_after_seconds=wait_seconds,
                )
