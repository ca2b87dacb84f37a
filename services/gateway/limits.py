"""What a tier means, and which limit is the tighter one. Pure; hourly_limit.lua counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.api.auth import Principal
from shared.types import Tier


class Scope(StrEnum):
    """Whose limit it is."""

    USER = "user"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class HourlyLimit:
    """So many requests in any hour, for one user or one key."""

    scope: Scope
    #: Where it is counted.
    bucket: str
    requests: int


@dataclass(frozen=True, slots=True)
class Count:
    """What one limit's window holds."""

    used: int
    #: Until one more request fits; 0 when it does now.
    retry_after_seconds: float
    #: Until the oldest counted minute leaves the window; 0 when nothing is counted.
    resets_in_seconds: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of the tightest limit, after this request where it was let in."""

    scope: Scope
    limit: int
    used: int
    resets_in_seconds: float

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Refused:
    """The limit that has no room, the one with the longest wait where both have none."""

    allowance: Allowance
    retry_after_seconds: float


def hourly(principal: Principal, by_tier: Mapping[Tier, int]) -> tuple[HourlyLimit, ...]:
    """The limits that a request of this caller counts against; its user's, and its key's where there is one."""
    of_tier = by_tier[principal.tier]
    # The braces make a Redis cluster keep both counters on one node, as one Lua call needs it.
    user = HourlyLimit(Scope.USER, f"gateway:hour:{{{principal.user_id}}}:user", of_tier)
    if principal.key_id is None or principal.key_limits.requests_per_hour is None:
        return (user,)
    return (
        user,
        HourlyLimit(Scope.KEY, f"gateway:hour:{{{principal.user_id}}}:key:{principal.key_id}", principal.key_limits.requests_per_hour),
    )


def tightest(limits: Sequence[HourlyLimit], counts: Sequence[Count]) -> Allowance:
    """The limit with the fewest requests left."""
    limit, count = min(zip(limits, counts, strict=True), key=lambda pair: pair[0].requests - pair[1].used)
    return Allowance(limit.scope, limit.requests, count.used, count.resets_in_seconds)


def refusal(limits: Sequence[HourlyLimit], counts: Sequence[Count]) -> Refused:
    """Why there was no room."""
    limit, count = max(zip(limits, counts, strict=True), key=lambda pair: pair[1].retry_after_seconds)
    allowance = Allowance(limit.scope, limit.requests, count.used, count.resets_in_seconds)
    return Refused(allowance, count.retry_after_seconds)
