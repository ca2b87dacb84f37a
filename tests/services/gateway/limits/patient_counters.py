"""Counters in Valkey without a time limit, for tests about what is counted."""

from collections.abc import Sequence

from services.gateway.limits.limit_scripts import Argument
from shared.stores.cache import Cache


class PatientCounters:
    """A cache whose scripts may take any time, because the test machine may be busy."""

    def __init__(self, cache: Cache) -> None:
        self.script, self.connect = cache.script, cache.connect
        self._cache = cache

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> list[int]:
        found: list[int] = await self._cache.run(script, keys, args)
        return found
