"""What the limits of this process alone let in. That it is the same as in Valkey is ``test_valkey_limits``'s."""

from uuid import uuid4

import pytest

from services.gateway.limits.limit_rules import ConcurrencySlot, LimitKind, LimitScope, RequestLimit
from services.gateway.limits.local_limits import PLACE_SECONDS, LocalLimits
from shared.types import RequestId

NOW = 1_000_000.0


def limit(kind: LimitKind, most: int) -> RequestLimit:
    return RequestLimit(LimitScope.USER, kind, f"counter of {kind}", most)


def ask(local: LocalLimits, *found: RequestLimit, tokens: int = 10, now: float = NOW, lease_seconds: float = 600.0) -> RequestId | None:
    """The request, if it was let in."""
    request_id = RequestId(uuid4())
    return request_id if local.admit(found, request_id, tokens=tokens, lease_seconds=lease_seconds, now=now).admitted else None


def left(local: LocalLimits, one: RequestLimit, now: float = NOW) -> int:
    return local.look([one], tokens=0, now=now).counts[0].left


@pytest.mark.parametrize("kind", LimitKind)
def test_of_many_exactly_as_many_as_the_limit_are_let_in(kind: LimitKind) -> None:
    local, one = LocalLimits(), limit(kind, 1000 if kind is LimitKind.TOKENS_PER_MINUTE else 100)
    assert sum(ask(local, one) is not None for _ in range(400)) == 100


def test_a_request_that_is_refused_is_counted_nowhere() -> None:
    local, hour, places = LocalLimits(), limit(LimitKind.REQUESTS_PER_HOUR, 10), limit(LimitKind.CONCURRENCY, 1)
    assert [ask(local, hour, places) is not None for _ in range(5)] == [True, False, False, False, False]
    assert left(local, hour) == 9


def test_no_hour_holds_more_than_the_limit() -> None:
    local, hour = LocalLimits(), limit(LimitKind.REQUESTS_PER_HOUR, 1)
    began = 60 * (NOW // 60)
    assert ask(local, hour, now=began + 59.9)
    assert not ask(local, hour, now=began + 3659.8)
    assert ask(local, hour, now=began + 3660)


def test_unused_tokens_come_back_once() -> None:
    local, one = LocalLimits(), limit(LimitKind.TOKENS_PER_MINUTE, 1000)
    mine = ask(local, one, tokens=500)
    assert mine
    assert ask(local, one, tokens=500)
    assert [local.settle([one], mine, tokens=100, now=NOW) for _ in range(2)] == [True, False]
    assert left(local, one) == 400


def test_tokens_that_time_gave_back_are_not_given_back_again() -> None:
    local, one = LocalLimits(), limit(LimitKind.TOKENS_PER_MINUTE, 1000)
    mine = ask(local, one, tokens=1000)
    assert mine
    assert ask(local, one, tokens=1000, now=NOW + 60)
    local.settle([one], mine, tokens=0, now=NOW + 60)
    assert left(local, one, NOW + 60) == 0


def test_a_place_is_free_when_its_request_ends_or_its_gateway_has_said_nothing_for_half_a_minute() -> None:
    local, one = LocalLimits(), limit(LimitKind.CONCURRENCY, 2)
    mine, others = ask(local, one), ask(local, one)
    assert mine
    assert others
    assert not ask(local, one)
    assert local.settle([one], mine, tokens=0, now=NOW)
    assert ask(local, one)
    local.extend([ConcurrencySlot(one.counter, others)], now=NOW + PLACE_SECONDS - 1)
    assert left(local, one, NOW + PLACE_SECONDS) == 1
    assert left(local, one, NOW + 2 * PLACE_SECONDS) == 2
