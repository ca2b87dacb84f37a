"""Defines the limits that a request counts against, and finds the tightest. Pure; ``counters.lua`` counts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from functools import lru_cache
from typing import Literal

import msgspec

from services.gateway.facts.tiers import TierPlan
from services.gateway.facts.tightest_limit import TightestLimit
from shared import amounts, errors
from shared.api.auth import ApiKeyLimits, Principal
from shared.api.gateway import NO_LIMIT, LimitState
from shared.limits import BY_NAME, LIMITS, LimitKind
from shared.types import ModelName, PlanName, RequestId

#: Gateways that count alone may together admit this multiple of the limit, so that an uneven distribution of calls doesn't cause
#: refusals.
_GENEROSITY = 1.2

# One hash tag for all counters keeps them on one node of a Redis cluster: a call over several nodes would not be atomic, and a model's
# counter belongs to all users. The price is that one node counts everything, at about 50 microseconds per call.
_PREFIX = "gateway:{limits}:"
#: So that a client in a loop does not fill the request log.
_REFUSED_ROWS = LimitKind("refused_rows", "rate", "request", 60)
MAX_REFUSED_ROWS = 10
#: Of ``getUserQuota``.
_HOUR = BY_NAME["requests_per_hour"]


#: Attribute that carries the remaining limits on any error.
_LEFT = "left_of_limits"


class LimitScope(StrEnum):
    """Who a limit applies to."""

    USER = "user"
    KEY = "key"
    MODEL = "model"


@dataclass(frozen=True, slots=True)
class RequestLimit:
    scope: LimitScope
    kind: LimitKind
    #: Key of its counter.
    counter: str
    most: int
    #: The model's name; empty for users and keys.
    name: str = field(default="", compare=False)
    #: The setting that defines it, for people.
    source: str = field(default="", compare=False)
    #: The whole limit, if ``most`` is one gateway's share of it.
    shared_most: int | None = field(default=None, compare=False)


class Count(msgspec.Struct, frozen=True):
    """How much of a limit is used."""

    #: Negative if the limit was lowered below the usage.
    left: int
    #: Time until the request would be admitted; 0 if it would be now.
    retry_after_seconds: float
    #: Time until the limit is fully available again; for hourly limits, until the oldest minute expires.
    resets_in_seconds: float


class LimitVerdict(msgspec.Struct, frozen=True):
    """Says whether a request is admitted. The counts include it only if it is."""

    admitted: bool
    counts: tuple[Count, ...]


class LimitReached(errors.Limited):
    """A limit is exceeded; of several, the one with the longest wait. Carries what is left of all, see ``attach_limits``."""

    def __init__(self, limits: Sequence[RequestLimit], counts: Sequence[Count], tier: PlanName) -> None:
        limit, count = max(zip(limits, counts, strict=True), key=lambda pair: pair[1].retry_after_seconds)
        reached = "reached" if limit.kind.counter == "slots" else "used up"
        super().__init__(
            f"{_describe(limit, tier)} is {reached}",
            hint=f"wait {amounts.show_duration(max(1.0, count.retry_after_seconds))}, or ask an administrator for a higher limit",
            retry_after_seconds=count.retry_after_seconds,
        )
        self.scope, self.counter = limit.scope, limit.counter
        attach_limits(self, tightest(limits, counts))


#: A request's slot in a concurrency limit: the key of its counter, and the request.
ConcurrencySlot = tuple[str, RequestId]


class CountedRequest(Enum):
    """Where a request was counted."""

    VALKEY = "valkey"
    #: In this gateway, because Valkey was down.
    HERE = "here"
    #: Nowhere: there is no limit, or Valkey was down with the setting "open".
    NOWHERE = "nowhere"


class LimitUsage(msgspec.Struct, frozen=True):
    """What an admitted request has used, for ``Quotas.settle``."""

    counted: CountedRequest
    request_id: RequestId
    #: Limits that get their unused part back.
    held: tuple[RequestLimit, ...]
    tightest: TightestLimit


@lru_cache(maxsize=4096)  # called several times per request; sized for the active callers
def caller_limits(principal: Principal, plan: TierPlan) -> tuple[RequestLimit, ...]:
    """Return the limits of this caller's user, and of its key if it used one."""
    user_limits = _scope_limits(LimitScope.USER, f"{principal.limited_as}", plan)
    if principal.key_id is None:
        return user_limits
    return (*user_limits, *_scope_limits(LimitScope.KEY, f"{principal.key_id}", principal.key_limits))


def model_limits(model: ModelName, models: Mapping[ModelName, TierPlan]) -> tuple[RequestLimit, ...]:
    """Return the limits that apply to all callers of the model. Raises ConfigUnreadable."""
    limits = models.get(model)
    if limits is None:
        return ()
    if limits.unreadable is not None:
        raise limits.unreadable.problem()
    return _scope_limits(LimitScope.MODEL, model, limits)


def _scope_limits(scope: LimitScope, owner: str, plan: TierPlan | ApiKeyLimits) -> tuple[RequestLimit, ...]:
    name = owner if scope is LimitScope.MODEL else ""
    source_of = plan.source_of if isinstance(plan, TierPlan) else lambda _: "key"
    return tuple(
        RequestLimit(scope, kind, f"{_PREFIX}{scope}:{owner}:{kind.name}", number, name, source_of(kind.name))
        for kind in LIMITS
        if (number := kind.of(plan)) is not None
    )


def refused_rows(principal: Principal) -> RequestLimit:
    """Return the limit of the rows that refused requests of one key, or of a user's logins, leave in the request log."""
    owner = principal.key_id or principal.user_id
    return RequestLimit(LimitScope.KEY, _REFUSED_ROWS, f"{_PREFIX}refused:{owner}", MAX_REFUSED_ROWS)


def hold(request_id: RequestId | str) -> str:
    """Return the key that records what a request holds, so that it is returned only once."""
    return f"{_PREFIX}request:{request_id}"


def cost(kind: LimitKind, *, tokens: int, images: int) -> int:
    """Return what a request costs of a limit."""
    match kind.cost:
        case "request":
            return 1
        case "token":
            return tokens
        case "image":
            return images


def most_tokens(limits: Iterable[RequestLimit]) -> int | None:
    """Return the largest number of tokens that a request can ever reserve; None if unlimited."""
    return min((limit.most for limit in limits if limit.kind.cost == "token"), default=None)


def within(limits: Iterable[RequestLimit], cost: Literal["token", "image"], number: int) -> int:
    """Return the number, or as much of it as each of the limits has at most."""
    return min((limit.most for limit in limits if limit.kind.cost == cost and limit.most < number), default=number)


def ensure_fits(limits: Sequence[RequestLimit], *, tokens: int, images: int) -> None:
    """Raise TokensTooLarge or BadRequest for a request that is larger than a whole limit."""
    too_small = [limit for limit in limits if limit.kind.cost != "request" and cost(limit.kind, tokens=tokens, images=images) > limit.most]
    if not too_small:
        return
    limit = min(too_small, key=lambda each: each.most)
    most = f"the limit is {limit.most} {limit.kind.words}"
    if limit.kind.cost == "image":
        raise errors.BadRequest(f"the request has {images} images, but {most}", hint="leave some out, or ask an administrator for more")
    raise errors.TokensTooLarge(
        f"the prompt and max_tokens add up to {tokens} tokens, but {most}",
        hint="lower max_tokens, shorten the prompt, or ask an administrator for a higher limit",
    )


def states(limits: Sequence[RequestLimit], counts: Sequence[Count]) -> tuple[LimitState, ...]:
    return tuple(map(_state, limits, counts))


def find_reached(limits: Sequence[RequestLimit], counts: Sequence[Count], tier: PlanName) -> LimitReached | None:
    """Return the limit of an hour or a day that refuses any further request of the caller; None if none does."""
    reached = [
        # What was asked about needs no token, so a limit of tokens has no wait for it.
        (limit, msgspec.structs.replace(count, retry_after_seconds=count.retry_after_seconds or count.resets_in_seconds))
        for limit, count in zip(limits, counts, strict=True)
        if count.left <= 0 and limit.scope is not LimitScope.MODEL and limit.kind.counter == "window" and limit.kind.cost != "image"
    ]
    return LimitReached([limit for limit, _ in reached], [count for _, count in reached], tier) if reached else None


def tightest(limits: Sequence[RequestLimit], counts: Sequence[Count]) -> TightestLimit:
    found: dict[str, LimitState] = {}
    for limit, count in zip(limits, counts, strict=True):
        if limit.kind.header is not None:
            state = _state(limit, count)
            found[limit.kind.header] = min(found.get(limit.kind.header, state), state, key=lambda each: each.remaining)
    return TightestLimit(**found)


def _describe(limit: RequestLimit, tier: PlanName) -> str:
    owner = {LimitScope.USER: f"the {tier} tier's", LimitScope.KEY: "this key's", LimitScope.MODEL: "the model's"}[limit.scope]
    if limit.shared_most in (None, limit.most):
        return f"{owner} limit of {limit.most} {limit.kind.words}"
    return f"{owner} limit of {limit.shared_most} {limit.kind.words} (this gateway's share: {limit.most})"


def hourly(found: Sequence[LimitState]) -> LimitState:
    """Return the caller's tightest hourly limit; NO_LIMIT if there is none."""
    hours = [state for state in found if state.kind == _HOUR.name and state.scope != LimitScope.MODEL]
    nothing = LimitState(LimitScope.USER, _HOUR.name, NO_LIMIT, NO_LIMIT, 0)
    return min(hours, key=lambda state: state.remaining, default=nothing)


def attach_limits(error: Exception, tightest: TightestLimit) -> None:
    """Attach the remaining limits to an error, for the response headers. They say that the request was counted, or refused by a limit."""
    setattr(error, _LEFT, tightest)


def attached_limits(error: Exception) -> TightestLimit | None:
    """Return the limits attached by ``attach_limits``; None if there are none."""
    found = getattr(error, _LEFT, None)
    return found if isinstance(found, TightestLimit) else None


def shares(limits: Iterable[RequestLimit], gateways: int) -> tuple[RequestLimit, ...]:
    """Return one gateway's share of the limits, at least 1 each so that no limit blocks everything."""
    return tuple(
        replace(limit, most=max(1, min(limit.most, int(limit.most * _GENEROSITY / gateways))), shared_most=limit.most) for limit in limits
    )


def _state(limit: RequestLimit, count: Count) -> LimitState:
    left = max(0, min(limit.most, count.left))
    return LimitState(limit.scope, limit.kind.name, limit.most, left, count.resets_in_seconds, limit.name, limit.source)
