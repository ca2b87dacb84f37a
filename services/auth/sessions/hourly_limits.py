"""Limit how often something may be requested in a period, counted in Valkey for all replicas."""

import hashlib
from pathlib import Path

from shared import addresses
from shared.stores.cache import Cache
from shared.types import NodeId

_SCRIPT = "hourly"


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
        key = f"auth:{self._what}:{hashlib.sha256(subject.encode()).hexdigest()}"
        return int(await self._cache.run(_SCRIPT, [key], [most, self._seconds * 1000])) / 1000


def requester_of(address: str, node: NodeId) -> str:
    """Return what to count under: the address, or its network for IPv6, or the calling node if there is no address."""
    return addresses.client_network(address) or str(node)
