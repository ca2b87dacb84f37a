"""Which limits a request counts against, and which of them is the tightest. Pure; ``admit_request.lua`` counts, and ``local_limits``
where Valkey is away."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from functools import lru_cache
from typing import Literal

from services.gateway.limits.tiers import TierPlan
from shared.api.auth import ApiKeyLimits, Principal
from shared.api.gateway import NO_LIMIT, LimitState
from shared.types import ModelName, RequestId, Tier

#: What an unlimited caller is told where a number has to stand: more than anybody asks in an hour.
UNLIMITED = NO_LIMIT
#: While several gateways count alone: together they may let in this many times the limit, so that one that gets more than its
#: share of the calls does not refuse what fits.
_GENEROSITY = 1.2

# All counters lie under one tag, so that a Redis cluster keeps them on one node: a call over several nodes could not be all or
# nothing, and a model's counter belongs to every user's calls. The price is that this node counts for all; a call takes it some
# 50 microseconds.
_PREFIX = "gateway:{limits}:"


#: An error's attribute: the errors are everybody's, and limits are known here alone.
_LEFT = "left_of_limits"

#: What happens to requests while Valkey is away: each gateway counts alone, nobody counts, or none is let in.
WithoutValkey = Literal["degrade", "open", "closed"]


class LimitScope(StrEnum):
    """Whose limit it is."""

    USER = "user"
    KEY = "key"
    MODEL = "model"


class LimitKind(StrEnum):
    """What it counts; the scripts know these words."""

    REQUESTS_PER_HOUR = "requests_per_hour"
    REQUESTS_PER_MINUTE = "requests_per_minute"
    TOKENS_PER_MINUTE = "tokens_per_minute"
    CONCURRENCY = "concurrency"


#: A request gives back of these what it did not use.
HELD = (LimitKind.TOKENS_PER_MINUTE, LimitKind.CONCURRENCY)


@dataclass(frozen=True, slots=True)
class RequestLimit:
    scope: LimitScope
    kind: LimitKind
    #: Where it is counted.
    counter: str
    most: int
    #: Whose, where the scope does not say it: the model's name.
    name: str = field(default="", compare=False)
    #: The setting that it comes from, for people.
    source: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Count:
    """How far one limit is used."""

    #: Negative where the limit was lowered below what is used.
    left: int
    #: Until the request that was asked for fits; 0 when it does now.
    retry_after_seconds: float
    #: Until nothing is used any more (of an hour: until its oldest minute leaves); at the latest.
    resets_in_seconds: float


@dataclass(frozen=True, slots=True)
class LimitVerdict:
    """Whether a request was let in, and every limit's count: after it where it was, without it where it was not."""

    admitted: bool
    counts: tuple[Count, ...]


@dataclass(frozen=True, slots=True)
class Allowance:
    """A limit and what is left of it."""

    scope: LimitScope
    kind: LimitKind
    limit: int
    remaining: int
    resets_in_seconds: float
    #: As of its limit.
    name: str = ""
    source: str = ""

    @property
    def used(self) -> int:
        return self.limit - self.remaining


@dataclass(frozen=True, slots=True)
class TightestLimit:
    """What the headers of an answer tell: of all limits of a kind the one with the least left. None where there is none."""

    requests: Allowance | None = None
    tokens: Allowance | None = None


@dataclass(frozen=True, slots=True)
class LimitRefusal:
    """The limit that has no room, the one with the longest wait where several have none."""

    allowance: Allowance
    retry_after_seconds: float
    tightest: TightestLimit


@dataclass(frozen=True, slots=True)
class ConcurrencySlot:
    """One of those that may run at once."""

    #: Where it is counted.
    counter: str
    request_id: RequestId


class CountedRequest(Enum):
    """Who counted a request."""

    VALKEY = "valkey"
    #: This gateway, while Valkey was away.
    HERE = "here"
    #: There is no limit, or Valkey was away and nobody counts then.
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class Spent:
    """What a request that was let in has taken, for ``Quotas.settle``."""

    counted: CountedRequest
    request_id: RequestId
    #: Those that get something back.
    held: tuple[RequestLimit, ...]
    tightest: TightestLimit


@lru_cache(maxsize=4096)  # asked several times for each request; as many callers as are busy
def of_caller(principal: Principal, plan: TierPlan) -> tuple[RequestLimit, ...]:
    """What every request of this caller counts against: its user's limits, and its key's where it came with one."""
    of_user = _of_scope(LimitScope.USER, f"{principal.limited_as}", plan)
    if principal.key_id is None:
        return of_user
    return (*of_user, *_of_scope(LimitScope.KEY, f"{principal.key_id}", principal.key_limits))


def of_model(model: ModelName, models: Mapping[ModelName, TierPlan]) -> tuple[RequestLimit, ...]:
    """What a request counts against besides, whoever it is from."""
    return _of_scope(LimitScope.MODEL, model, models[model]) if model in models else ()


def _of_scope(scope: LimitScope, whose: str, plan: TierPlan | ApiKeyLimits) -> tuple[RequestLimit, ...]:
    most = {
        LimitKind.REQUESTS_PER_HOUR: plan.requests_per_hour,
        LimitKind.REQUESTS_PER_MINUTE: plan.requests_per_minute,
        LimitKind.TOKENS_PER_MINUTE: plan.tokens_per_minute,
        LimitKind.CONCURRENCY: plan.concurrency,
    }
    name = whose if scope is LimitScope.MODEL else ""
    return tuple(
        RequestLimit(
            scope, kind, f"{_PREFIX}{scope}:{whose}:{kind}", number, name, plan.source_of(kind) if isinstance(plan, TierPlan) else "key"
        )
        for kind, number in most.items()
        if number is not None
    )


def hold(request_id: RequestId | str) -> str:
    """Where it is remembered what a request holds, so that it gives that back once."""
    return f"{_PREFIX}request:{request_id}"


def most_tokens(limits: Iterable[RequestLimit]) -> int | None:
    """No request that reserves more tokens is ever let in; None where any number is."""
    return min((limit.most for limit in limits if limit.kind is LimitKind.TOKENS_PER_MINUTE), default=None)


def allowances(limits: Sequence[RequestLimit], counts: Sequence[Count]) -> tuple[Allowance, ...]:
    return tuple(map(_allowance, limits, counts))


def tightest(limits: Sequence[RequestLimit], counts: Sequence[Count]) -> TightestLimit:
    found = allowances(limits, counts)
    requests = [one for one in found if one.kind in {LimitKind.REQUESTS_PER_HOUR, LimitKind.REQUESTS_PER_MINUTE}]
    tokens = [one for one in found if one.kind is LimitKind.TOKENS_PER_MINUTE]
    return TightestLimit(_least(requests), _least(tokens))


def refusal(limits: Sequence[RequestLimit], counts: Sequence[Count]) -> LimitRefusal:
    """Why there was no room."""
    limit, count = max(zip(limits, counts, strict=True), key=lambda pair: pair[1].retry_after_seconds)
    return LimitRefusal(_allowance(limit, count), count.retry_after_seconds, tightest(limits, counts))


def words(allowance: Allowance, tier: Tier) -> str:
    """Which limit it is, for people."""
    whose = {LimitScope.USER: f"the {tier} tier's", LimitScope.KEY: "this key's", LimitScope.MODEL: "the model's"}[allowance.scope]
    what = {
        LimitKind.REQUESTS_PER_HOUR: "requests per hour",
        LimitKind.REQUESTS_PER_MINUTE: "requests per minute",
        LimitKind.TOKENS_PER_MINUTE: "tokens per minute",
        LimitKind.CONCURRENCY: "requests at once",
    }[allowance.kind]
    return f"{whose} limit of {allowance.limit} {what}"


def hourly(found: Sequence[Allowance]) -> Allowance:
    """The caller's tightest of an hour; a number that nobody reaches where there is none."""
    least = _least([one for one in found if one.kind is LimitKind.REQUESTS_PER_HOUR and one.scope is not LimitScope.MODEL])
    return least or Allowance(LimitScope.USER, LimitKind.REQUESTS_PER_HOUR, UNLIMITED, UNLIMITED, 0)


def states(found: Iterable[Allowance]) -> tuple[LimitState, ...]:
    """The same for the wire."""
    return tuple(LimitState(one.scope, one.kind, one.limit, one.remaining, one.resets_in_seconds, one.name, one.source) for one in found)


def tell_with(error: Exception, tightest: TightestLimit | None) -> None:
    """A request that was counted and then refused for another reason: its answer tells what is left, as a good one does."""
    if tightest is not None:
        setattr(error, _LEFT, tightest)


def told_with(error: Exception) -> TightestLimit | None:
    """None where nothing was counted, or nothing is limited."""
    found = getattr(error, _LEFT, None)
    return found if isinstance(found, TightestLimit) else None


def shares(limits: Iterable[RequestLimit], gateways: int) -> tuple[RequestLimit, ...]:
    """What one of so many gateways counts alone with: at least one, or nobody of that limit would be let in."""
    return tuple(replace(limit, most=max(1, min(limit.most, int(limit.most * _GENEROSITY / gateways)))) for limit in limits)


def _allowance(limit: RequestLimit, count: Count) -> Allowance:
    # What is used above a lowered limit leaves nothing, and not less than nothing.
    left = max(0, min(limit.most, count.left))
    return Allowance(limit.scope, limit.kind, limit.most, left, count.resets_in_seconds, limit.name, limit.source)


def _least(found: Iterable[Allowance]) -> Allowance | None:
    return min(found, key=lambda allowance: allowance.remaining, default=None)
