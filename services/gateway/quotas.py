"""Counts requests against the hourly limits in Valkey; ``limits`` says what they are and what the counts mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from services.gateway import limits
from services.gateway.limits import Allowance, Count, HourlyLimit
from shared import errors
from shared.api.auth import Principal
from shared.types import Tier

_SCRIPT = "hourly_limit"


class Counters(Protocol):
    """The part of shared.cache that is used here."""

    def script(self, name: str, lua: str) -> None: ...

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | float | bytes]) -> list[int]: ...


class Quotas:
    """Both methods raise Unavailable when Valkey does not answer."""

    def __init__(self, counters: Counters, by_tier: Mapping[Tier, int]) -> None:
        self._counters = counters
        self._by_tier = by_tier
        counters.script(_SCRIPT, Path(__file__).with_name("hourly_limit.lua").read_text(encoding="utf-8"))

    async def spend(self, principal: Principal) -> Allowance:
        """Count one request. Raises Limited, and then nothing was counted."""
        hourly = limits.hourly(principal, self._by_tier)
        counted, counts = await self.count(hourly, requests=1)
        if counted:
            return limits.tightest(hourly, counts)
        refused = limits.refusal(hourly, counts)
        raise HourlyLimited(refused, principal.tier)

    async def look(self, principal: Principal) -> Allowance:
        """What is left; counts nothing."""
        hourly = limits.hourly(principal, self._by_tier)
        _, counts = await self.count(hourly, requests=0)
        return limits.tightest(hourly, counts)

    async def count(self, hourly: Sequence[HourlyLimit], *, requests: int, now: float | None = None) -> tuple[bool, list[Count]]:
        """One call, all or nothing: whether they were counted, and each limit's window. ``now`` is for tests."""
        args: list[str | int | float | bytes] = [requests, "" if now is None else repr(now), *(limit.requests for limit in hourly)]
        counted, *reply = await self._counters.run(_SCRIPT, [limit.bucket for limit in hourly], args)
        triples = zip(reply[0::3], reply[1::3], reply[2::3], strict=True)
        return counted == 1, [Count(used, retry_ms / 1000, resets_ms / 1000) for used, retry_ms, resets_ms in triples]


class HourlyLimited(errors.Limited):
    """The hourly limit is used up; knows whose it is."""

    def __init__(self, refused: limits.Refused, tier: Tier) -> None:
        allowance = refused.allowance
        whose = "this key's" if allowance.scope is limits.Scope.KEY else f"the {tier} tier's"
        super().__init__(
            f"{whose} limit of {allowance.limit} requests per hour is used up",
            hint="wait, or ask the admin for a higher limit",
            retry_after_seconds=refused.retry_after_seconds,
        )
        self.allowance = allowance
