"""Limits counted in this process. ``test_limit_scripts`` checks that the answers are the same as Valkey's."""

from dataclasses import replace
from uuid import uuid4

import pytest

from services.gateway.limits.limit_rules import LimitScope, RequestLimit
from services.gateway.limits.limit_scripts import LimitScripts, LocalCounters
from shared.limits import LIMITS, LimitKind
from shared.types import RequestId
from tests.services.gateway.limits.kinds import HOUR, MINUTE, TOKENS


class LocalLimits:
    """Local counters with a clock that the test sets."""

    def __init__(self, *, most: int = 1000) -> None:
        self.now = 1000.0
        self.counters = LocalCounters(lambda: self.now, most=most)
        self.limits = LimitScripts(self.counters)

    async def ask(self, *limits: RequestLimit, tokens: int = 10, lease_seconds: float = 600.0) -> RequestId | None:
        """Return the request's id if it was admitted."""
        request_id = RequestId(uuid4())
        verdict = await self.limits.admit(limits, request_id, tokens=tokens, lease_seconds=lease_seconds)
        return request_id if verdict.admitted else None

    async def left(self, rule: RequestLimit) -> int:
        return (await self.limits.read([rule], tokens=0)).counts[0].left


def limit(kind: LimitKind, most: int) -> RequestLimit:
    return RequestLimit(LimitScope.USER, kind, f"counter of {kind}", most)


async def test_a_running_request_reserves_more_tokens_once_and_returns_them_all() -> None:
    local, rule, model = (
        LocalLimits(),
        limit(TOKENS, 1000),
        replace(limit(TOKENS, 700), counter="m"),
    )
    mine = await local.ask(rule, model, tokens=100)
    assert mine
    for total, left in ((400, 600), (400, 600), (300, 600), (700, 300)):
        assert await local.limits.extend_tokens([rule, model], mine, tokens=total)
        assert await local.left(rule) == left
    assert not await local.limits.extend_tokens([rule, model], mine, tokens=701), "the model has none left, so none are taken from the user"
    assert (await local.left(rule), await local.left(model)) == (300, 0)
    assert await local.limits.settle([rule, model], mine, tokens=650)
    assert (await local.left(rule), await local.left(model)) == (350, 50)
    assert await local.limits.extend_tokens([rule, model], mine, tokens=999), "it has ended, so nothing is counted"
    assert (await local.left(rule), await local.left(model)) == (350, 50)
    assert not await local.limits.settle([rule, model], mine, tokens=0)


async def test_time_restores_extended_tokens_too() -> None:
    local, rule = LocalLimits(), limit(TOKENS, 600)
    mine = await local.ask(rule, tokens=600, lease_seconds=20)
    assert mine
    assert not await local.limits.extend_tokens([rule], mine, tokens=700)
    local.now += 10
    assert await local.limits.extend_tokens([rule], mine, tokens=700)
    assert await local.left(rule) == 0
    local.now += 9
    assert await local.limits.settle([rule], mine, tokens=700), "the hold's lease is as long as before"
    assert await local.left(rule) == 90


async def test_a_reservation_ends_with_its_lease() -> None:
    local, rule = LocalLimits(), limit(TOKENS, 1000)
    mine = await local.ask(rule, tokens=500, lease_seconds=20)
    assert mine
    local.now += 21
    assert not await local.limits.settle([rule], mine, tokens=0)


async def test_the_least_recently_used_counters_are_dropped() -> None:
    local, kept = LocalLimits(most=100), limit(HOUR, 1001)
    assert await local.ask(kept)
    for number in range(1000):
        await local.ask(RequestLimit(LimitScope.USER, MINUTE, f"c{number}", 10), kept)
    assert len(local.counters._entries) == 100
    assert await local.left(kept) == 0


async def test_looking_keeps_nothing() -> None:
    local = LocalLimits()
    for kind in LIMITS:
        assert await local.left(limit(kind, 100)) == 100
    assert not local.counters._entries


async def test_an_unknown_command_is_an_error_and_not_an_answer() -> None:
    local = LocalLimits()
    local.counters.script("other", "return redis.call('INCR', KEYS[1])")
    with pytest.raises(NotImplementedError, match="the command INCR is not implemented"):
        await local.counters.run("other", ["a"], [])
