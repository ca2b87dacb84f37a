"""How many accounts one address may ask for in an hour: each brings credits, and each attempt tells whether a name is taken."""

from services.auth import hourly
from services.auth.hourly import Hourly
from shared import addresses, errors
from shared.cache import Cache
from shared.types import NodeId


class Newcomers:
    """May raise Unavailable."""

    def __init__(self, cache: Cache, most: int) -> None:
        self._asked = Hourly(cache, "registrations")
        self._most = most

    async def charge(self, address: str, door: NodeId) -> None:
        """Counted before anything is looked up. Raises Limited. Who sits at the door's own machine is not counted."""
        seen = addresses.parse(address)
        if seen is not None and seen.is_loopback:
            return
        wait_seconds = await self._asked.count(hourly.asker_of(address, door), self._most)
        if wait_seconds:
            raise errors.Limited(
                "too many accounts were asked for from your address",
                hint=f"wait; {self._most} in an hour are allowed. An administrator can add people at any time",
                retry_after_seconds=wait_seconds,
            )
