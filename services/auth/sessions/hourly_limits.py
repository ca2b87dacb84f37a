"""How often something may be asked for in an hour or another time, counted in Valkey for all replicas; and who it is that asks."""

import hashlib
from pathlib import Path

from shared import addresses
from shared.stores.cache import Cache
from shared.types import NodeId

_SCRIPT = "hourly"


class HourlyLimits:
    """May raise Unavailable. ``what`` keeps its counts apart from all others."""

    def __init__(self, cache: Cache, what: str, *, seconds: int = 3600) -> None:
        self._cache = cache
        self._what = what
        self._seconds = seconds
        cache.script(_SCRIPT, Path(__file__).with_name("hourly_limits.lua").read_text(encoding="utf-8"))

    async def count(self, whom: str, most: int) -> float:
        """0 where it was counted, otherwise the seconds to wait."""
        # Hashed, because an address is a person's.
        key = f"auth:{self._what}:{hashlib.sha256(whom.encode()).hexdigest()}"
        return int(await self._cache.run(_SCRIPT, [key], [most, self._seconds * 1000])) / 1000


def asker_of(address: str, node: NodeId) -> str:
    """Who is counted: an address, for IPv6 the network that one household has; the calling node where it says no address."""
    return addresses.household(address) or str(node)
