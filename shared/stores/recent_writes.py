"""Remembers in Valkey up to where the primary's log must be replayed before a tenant may read from a replica.

Any replica of a service may have written it, so no process can remember it alone. Tenants that wrote nothing read from a replica that is
behind by the allowed time. Positions only grow, so the greater one wins.
"""

from collections.abc import Iterable
from uuid import UUID

from shared.stores.cache import Cache

#: For looking at the servers once a second, each with a deadline of a second.
_MORE_SECONDS = 5.0
_EVERYBODY = "*"
_NOTE = """
for _, key in ipairs(KEYS) do
    local known = redis.call('GET', key)
    if not known or tonumber(known) < tonumber(ARGV[1]) then redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
end
"""


class RecentWrites:
    """Every method may raise Unavailable."""

    def __init__(self, cache: Cache, service: str, lag_seconds: float) -> None:
        """A replica that is behind by more than ``lag_seconds`` is not used, so older writes need not be remembered."""
        self._cache = cache
        self._prefix = f"{service}:written:"
        self.seconds = lag_seconds + _MORE_SECONDS
        cache.script("note_writes", _NOTE)

    async def note(self, tenants: Iterable[UUID], position: int) -> None:
        keys = [f"{self._prefix}{tenant}" for tenant in (*tenants, _EVERYBODY)]
        await self._cache.run("note_writes", keys, [position, round(1000 * self.seconds)], seconds=1.0)

    async def find(self, tenant: UUID | None) -> int:
        """Return the position of a tenant's newest write, or of all tenants for None; 0 if it is too old to matter."""
        return int(await self._cache.get(f"{self._prefix}{tenant or _EVERYBODY}") or 0)
