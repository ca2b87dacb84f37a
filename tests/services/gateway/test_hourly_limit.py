"""The Lua script on a real Valkey."""

import asyncio
import random
import secrets

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.limits import HourlyLimit, Scope
from services.gateway.quotas import Quotas
from shared.cache import Cache
from shared.types import Tier
from tests.services.gateway.hour_model import Hours

BY_TIER = {Tier.FREE: 100, Tier.PRO: 1000}


def bucket() -> str:
    return f"test:{secrets.token_hex(8)}"


#: Steps of the clock in seconds: mostly a little, sometimes past a minute or the window, rarely backwards.
steps = st.one_of(
    st.floats(0, 5), st.floats(0, 90), st.floats(3000, 4000), st.floats(-200, 0), st.sampled_from([60.0, 3540.0, 3600.0, 3660.0])
)


@given(
    moves=st.lists(st.tuples(steps, st.sampled_from([1, 1, 1, 0, 2])), max_size=40), limits=st.tuples(st.integers(1, 6), st.integers(1, 4))
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_script_does_what_the_model_does(valkey_url: str, moves: list[tuple[float, int]], limits: tuple[int, int]) -> None:
    async def play() -> None:
        names = [bucket(), bucket()]
        hourly = [HourlyLimit(Scope.USER, names[0], limits[0]), HourlyLimit(Scope.KEY, names[1], limits[1])]
        model = Hours()
        now = 1_000_000.0
        async with Cache.open(valkey_url) as cache:
            quotas = Quotas(cache, BY_TIER)
            for step, requests in moves:
                now = max(0.0, now + step)
                counted, rows = await quotas.count(hourly, requests=requests, now=now)
                expected, wanted = model.spend(names, limits, requests, now)
                got = [(row.used, round(row.retry_after_seconds * 1000), round(row.resets_in_seconds * 1000)) for row in rows]
                assert (counted, got) == (expected, wanted)

    asyncio.run(play())


async def test_no_hour_ever_holds_more_than_the_limit(valkey_url: str) -> None:
    rng = random.Random(7)
    let_in: list[float] = []
    now = 5_000_000.0
    async with Cache.open(valkey_url) as cache:
        quotas = Quotas(cache, BY_TIER)
        limit = [HourlyLimit(Scope.USER, bucket(), 20)]
        for _ in range(1500):
            now += rng.expovariate(1 / 40)
            counted, (row,) = await quotas.count(limit, requests=1, now=now)
            if counted:
                let_in.append(now)
            else:
                # What it promises is true: one more fits then, and not a moment before.
                assert (await quotas.count(limit, requests=0, now=now + row.retry_after_seconds))[1][0].used < 20
    for position, end in enumerate(let_in):
        assert sum(end - 3600 <= at <= end for at in let_in[: position + 1]) <= 20
    # And it is not wasted: at most one minute of the window is given away.
    assert len(let_in) > 0.9 * 20 * (let_in[-1] - let_in[0]) / 3660


async def test_a_thousand_at_once_let_exactly_the_limit_in(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        quotas = Quotas(cache, BY_TIER)
        limit = [HourlyLimit(Scope.USER, bucket(), 100)]
        answers = await asyncio.gather(*(quotas.count(limit, requests=1) for _ in range(1000)))
    assert sum(counted for counted, _ in answers) == 100


async def test_all_or_nothing_over_both_limits(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        quotas = Quotas(cache, BY_TIER)
        user, key = HourlyLimit(Scope.USER, bucket(), 10), HourlyLimit(Scope.KEY, bucket(), 2)
        for _ in range(5):
            await quotas.count([user, key], requests=1)
        _, (of_user, of_key) = await quotas.count([user, key], requests=0)
    assert (of_user.used, of_key.used) == (2, 2)


async def test_the_counters_end_by_themselves(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        quotas = Quotas(cache, BY_TIER)
        name = bucket()
        await quotas.count([HourlyLimit(Scope.USER, name, 10)], requests=1)
        cache.script("ttl", "return redis.call('TTL', KEYS[1])")
        assert 3600 < await cache.run("ttl", [name], []) <= 3800


async def test_without_valkey_it_says_so() -> None:
    from shared import errors

    async with Cache.open("unix:///nowhere/valkey.sock") as cache:
        with pytest.raises(errors.Unavailable):
            await Quotas(cache, BY_TIER).count([HourlyLimit(Scope.USER, bucket(), 10)], requests=1)
