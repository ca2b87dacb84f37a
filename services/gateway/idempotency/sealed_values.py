"""Keeps answers sealed in Valkey for a while, bounded in bytes. Without Valkey, it keeps none."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from services.gateway.facts import tenant_encryption
from shared import errors
from shared.stores.cache import Cache, CacheRefuses
from shared.telemetry import logs
from shared.timing.circuit_breaker import Breaker
from shared.types import TenantId

#: Per value: about 5,000 tokens. Longer ones are rare, and reading one would delay the limits, which share Valkey.
MAX_BYTES = 256 * 1024
#: Valkey normally answers within a millisecond; otherwise requests run without it.
VALKEY_SECONDS = 0.02
#: Interval between probes while Valkey is down.
_PROBE_SECONDS = 1.0

_log = logs.get(part="sealed values")

_FIND, _KEEP = "find_answers", "keep_answers"


class SealedValues:
    """All names begin with ``prefix``, a hash tag and a colon. ``what``: what the log calls the values."""

    def __init__(
        self, cache: Cache, prefix: str, *, secret: str, most_bytes: int, what: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache = cache
        #: The order of all values, their sizes, and the sum of these.
        self._lists = tuple(prefix + word for word in ("order", "sizes", "bytes"))
        self._secret = secret
        self._most_bytes = most_bytes
        self._what = what
        self._clock = clock
        self._breaker = Breaker()
        self._probe_at = 0.0
        #: The script that Valkey refuses or doesn't answer; None if all is well.
        self._failing: str | None = None
        for name in (_FIND, _KEEP):
            cache.script(name, Path(__file__).with_name(f"{name}.lua").read_text(encoding="utf-8"))

    async def find(
        self, tenant: TenantId, names: Sequence[str], *, most_bytes: int = MAX_BYTES, seconds: float | None = None
    ) -> Iterator[bytes | None] | None:
        """Return the values, None where there is none; the last are left out if all have more bytes. Return None without Valkey."""
        found = await self._ask(_FIND, names, (most_bytes,), seconds)
        if not isinstance(found, list):
            return None
        # Each when it is read: a sealed value is compressed.
        return (value and tenant_encryption.unseal(value, tenant, name, self._secret) for name, value in zip(names, found, strict=False))

    async def keep(
        self, tenant: TenantId, values: Mapping[str, bytes], *, seconds: float, group: str = "", most_group_bytes: int = 0
    ) -> bool:
        """Return whether all are kept: none is too long, and Valkey has answered. ``group``: with which their names begin, if there is a
        limit for all such names."""
        sealed = {name: tenant_encryption.seal(plain, tenant, name, self._secret) for name, plain in values.items()}
        short = {name: value for name, value in sealed.items() if len(value) <= MAX_BYTES}
        args: tuple[int | str | bytes, ...] = (round(1000 * seconds), self._most_bytes, group, most_group_bytes, *short.values())
        is_kept = bool(short) and await self._ask(_KEEP, (*self._lists, *short), args) is not None
        return is_kept and len(short) == len(values)

    async def drop(self, group: str) -> None:
        """Delete all values of a group. Raises Unavailable."""
        await self._cache.run(_KEEP, self._lists, (1, self._most_bytes, group, 0))

    async def _ask(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes], seconds: float | None = None) -> object:
        now = self._clock()
        if self._breaker.is_open and now < self._probe_at:
            return None
        self._probe_at = now + _PROBE_SECONDS
        try:
            answer: object = await self._cache.run(script, keys, args, seconds=seconds or VALKEY_SECONDS)
        except errors.Unavailable as error:
            # A read-only Valkey answers other calls, which would close the breaker again and again.
            if self._breaker.failed(self._clock()) or isinstance(error, CacheRefuses):
                self._log_outage(script, error)
            return None
        self._breaker.succeeded()
        if self._failing == script:
            self._failing = None
            _log.info(f"{self._what} enabled again")
        return answer

    def _log_outage(self, script: str, error: errors.Unavailable) -> None:
        if self._failing is None:
            self._failing = script
            _log.error(f"{self._what} disabled", call=script, reason=f"{error.message}: {error.__cause__!r}")
