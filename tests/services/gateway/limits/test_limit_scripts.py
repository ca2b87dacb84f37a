"""The scripts on a real Valkey: they are exact, leave nothing behind, and local counters give the same answers."""

import asyncio
import random
import secrets
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.gateway.limits import limit_rules
from services.gateway.limits.limit_rules import LimitScope, RequestLimit
from services.gateway.limits.limit_scripts import SLOT_SECONDS, LimitScripts, LocalCounters
from shared import errors
from shared.limits import LIMITS, LimitKind
from shared.stores.cache import NO_VALKEY, Cache
from shared.types import RequestId
from tests.services.gateway.limits.kinds import HOUR, IMAGES, MINUTE, SLOTS, TOKENS, TOKENS_OF_DAY
from tests.services.gateway.limits.patient_counters import PatientCounters

NOW = 1_790_000_000.25
LEASE_SECONDS = 120.0


def limit(kind: LimitKind, most: int) -> RequestLimit:
    return RequestLimit(LimitScope.USER, kind, f"test:{{limits}}:{secrets.token_hex(8)}", most)


def request() -> RequestId:
    return RequestId(uuid4())


#: Steps of the clock in seconds: mostly a little, sometimes past a minute or a window, rarely backwards.
steps = st.one_of(
    st.floats(0, 0.5),
    st.floats(0, 5),
    st.floats(0, 90),
    st.floats(3000, 4000),
    st.floats(-200, 0),
    st.sampled_from([60.0, 3600.0, 3660.0, 86_400.0, 87_840.0]),
)
admits = st.tuples(st.just("admit"), steps, st.integers(0, 60), st.floats(100, 1000))
reads = st.tuples(st.just("read"), steps, st.integers(0, 60), st.just(0.0))
#: Settle one of the last requests with fewer tokens than reserved, with more, or with none.
settles = st.tuples(st.just("settle"), steps, st.integers(0, 70), st.integers(0, 5))
extends = st.tuples(st.just("extend"), steps, st.just(0), st.integers(0, 5))
raises = st.tuples(st.just("raise"), steps, st.integers(0, 200), st.integers(0, 5))
moves = st.lists(st.one_of(admits, admits, settles, reads, extends, raises), max_size=40)
sets_of_limits = st.lists(
    st.one_of(
        st.tuples(st.just(kind), st.integers(1, 13) if kind.cost == "request" else st.one_of(st.integers(60, 200), st.just(1_000_003)))
        for kind in LIMITS
    ),
    min_size=1,
    max_size=6,
)


@given(numbers=sets_of_limits, played=moves)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_local_counters_give_the_same_answers_as_valkey(
    valkey_url: str, numbers: list[tuple[LimitKind, int]], played: list[tuple[str, float, int, float]]
) -> None:
    async def play() -> None:
        local, now = LimitScripts(LocalCounters()), NOW
        limits = [limit(kind, most) for kind, most in numbers]
        held = [rule for rule in limits if rule.kind.is_held]
        request_ids = [request()]
        async with Cache.open(valkey_url) as cache:
            valkey = LimitScripts(PatientCounters(cache))
            for move, step, tokens, more in played:
                now = max(0.0, now + step)
                if move == "settle":
                    mine = request_ids[-1 - int(more) % len(request_ids)]
                    expected = await local.settle(held, mine, tokens=tokens, now=now)
                    assert await valkey.settle(held, mine, tokens=tokens, now=now) == expected
                elif move == "extend":
                    mine = request_ids[-1 - int(more) % len(request_ids)]
                    slots = [(rule.counter, mine) for rule in held if rule.kind is SLOTS]
                    await local.extend(slots, now=now)
                    await valkey.extend(slots, now=now)
                elif move == "raise":
                    mine = request_ids[-1 - int(more) % len(request_ids)]
                    of_tokens = [rule for rule in held if rule.kind is not SLOTS]
                    fits = await local.extend_tokens(of_tokens, mine, tokens=tokens, now=now)
                    assert await valkey.extend_tokens(of_tokens, mine, tokens=tokens, now=now) == fits
                elif move == "read":
                    assert await valkey.read(limits, tokens=tokens, now=now) == await local.read(limits, tokens=tokens, now=now)
                else:
                    request_ids.append(request())
                    size = {"tokens": tokens, "images": tokens % 7}
                    wanted = await local.admit(limits, request_ids[-1], **size, lease_seconds=more, now=now)
                    assert await valkey.admit(limits, request_ids[-1], **size, lease_seconds=more, now=now) == wanted

    asyncio.run(play())


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    async with Cache.open(valkey_url) as opened:
        yield opened


@pytest.fixture
def valkey_limits(cache: Cache) -> LimitScripts:
    return LimitScripts(PatientCounters(cache))


async def ask(
    valkey: LimitScripts, *limits: RequestLimit, tokens: int = 10, lease_seconds: float = LEASE_SECONDS, now: float | None = None
) -> bool:
    return (await valkey.admit(limits, request(), tokens=tokens, images=1, lease_seconds=lease_seconds, now=now)).admitted


@pytest.mark.parametrize("kind", LIMITS, ids=[kind.name for kind in LIMITS])
async def test_exactly_the_limit_of_four_hundred_concurrent_requests_is_admitted(valkey_limits: LimitScripts, kind: LimitKind) -> None:
    rule = limit(kind, 100 * limit_rules.cost(kind, tokens=10, images=1))
    # The clock is stopped; otherwise a limit per minute would admit more during the calls.
    answers = await asyncio.gather(*(ask(valkey_limits, rule, tokens=10, now=NOW) for _ in range(400)))
    assert sum(answers) == 100


async def test_the_servers_clock_works_too(valkey_limits: LimitScripts) -> None:
    hour, minute = limit(HOUR, 100), limit(MINUTE, 7)
    assert sum(await asyncio.gather(*(ask(valkey_limits, hour) for _ in range(400)))) == 100
    # Another request becomes possible every 8.6 s.
    assert sum(await asyncio.gather(*(ask(valkey_limits, minute) for _ in range(40)))) == 7


@pytest.mark.parametrize("position", [0, 1, 3])
async def test_a_request_counts_against_all_limits_or_none(valkey_limits: LimitScripts, position: int) -> None:
    tight = limit(SLOTS, 2)
    others = [limit(HOUR, 50), limit(MINUTE, 50), limit(TOKENS, 500)]
    limits = [*others[:position], tight, *others[position:]]
    assert [await ask(valkey_limits, *limits, now=NOW) for _ in range(5)] == [True, True, False, False, False]
    counts = (await valkey_limits.read(others, tokens=0, now=NOW)).counts
    assert [count.left for count in counts] == [48, 48, 480]


async def test_no_hour_exceeds_the_limit(valkey_limits: LimitScripts) -> None:
    rng = random.Random(7)
    let_in: list[float] = []
    now, rule = 5_000_000.0, limit(HOUR, 20)
    for _ in range(1500):
        now += rng.expovariate(1 / 40)
        verdict = await valkey_limits.admit([rule], request(), tokens=0, lease_seconds=1, now=now)
        if verdict.admitted:
            let_in.append(now)
        else:
            # The reported wait is right: one more request fits then.
            assert (await valkey_limits.read([rule], tokens=0, now=now + verdict.counts[0].retry_after_seconds)).admitted
    for position, end in enumerate(let_in):
        assert sum(end - 3600 <= at <= end for at in let_in[: position + 1]) <= 20
    # At most one minute of the window is lost.
    assert len(let_in) > 0.9 * 20 * (let_in[-1] - let_in[0]) / 3660


@pytest.mark.parametrize(("most", "tokens"), [(10, 1), (7, 1), (100, 30), (90_000, 4096)])
async def test_the_wait_is_exact_to_a_millisecond(valkey_limits: LimitScripts, most: int, tokens: int) -> None:
    rule = limit(TOKENS, most)
    while (verdict := await valkey_limits.admit([rule], request(), tokens=tokens, lease_seconds=1, now=NOW)).admitted:
        pass
    wait = verdict.counts[0].retry_after_seconds
    assert not (await valkey_limits.read([rule], tokens=tokens, now=NOW + wait - 0.002)).admitted
    assert (await valkey_limits.read([rule], tokens=tokens, now=NOW + wait)).admitted


async def test_unused_tokens_are_returned_once(valkey_limits: LimitScripts) -> None:
    rule, mine = limit(TOKENS, 1000), request()
    await valkey_limits.admit([rule], mine, tokens=900, lease_seconds=LEASE_SECONDS, now=NOW)
    await ask(valkey_limits, rule, tokens=100, now=NOW)
    assert not await ask(valkey_limits, rule, tokens=1, now=NOW)
    assert await valkey_limits.settle([rule], mine, tokens=200, now=NOW)
    for _ in range(3):
        assert not await valkey_limits.settle([rule], mine, tokens=200, now=NOW)
    assert (await valkey_limits.read([rule], tokens=0, now=NOW)).counts[0].left == 700
    assert not await valkey_limits.settle([rule], request(), tokens=0, now=NOW)


async def test_tokens_of_a_window_are_counted_where_the_request_began(valkey_limits: LimitScripts) -> None:
    rule, mine, day = limit(TOKENS_OF_DAY, 1000), request(), 86_400

    async def left(after: float) -> int:
        return (await valkey_limits.read([rule], tokens=0, now=NOW + after)).counts[0].left

    await valkey_limits.admit([rule], mine, tokens=100, lease_seconds=2 * day, now=NOW)
    assert await valkey_limits.extend_tokens([rule], mine, tokens=900, now=NOW + day / 2)
    assert not await valkey_limits.extend_tokens([rule], mine, tokens=1001, now=NOW + day / 2)
    assert await left(day / 2) == 100
    assert await valkey_limits.settle([rule], mine, tokens=400, now=NOW + day / 2)
    assert [await left(after) for after in (day / 2, day, day * 61 / 60 + 1440)] == [600, 600, 1000]
    owing = request()
    await valkey_limits.admit([rule], owing, tokens=0, lease_seconds=60, now=NOW + 2 * day)
    assert await valkey_limits.settle([rule], owing, tokens=300, now=NOW + 2 * day)
    assert await left(2 * day) == 700


async def test_a_request_without_images_costs_none_of_a_limit_of_images(valkey_limits: LimitScripts) -> None:
    rule = limit(IMAGES, 3)
    sizes = (2, 2, 1, 1, 0)
    verdicts = [await valkey_limits.admit([rule], request(), tokens=9, images=each, lease_seconds=1, now=NOW) for each in sizes]
    assert [verdict.admitted for verdict in verdicts] == [True, False, True, False, True]
    wait = verdicts[1].counts[0].retry_after_seconds
    assert 86_400 < wait <= 86_400 * 61 / 60
    assert (await valkey_limits.admit([rule], request(), tokens=9, images=3, lease_seconds=1, now=NOW + wait)).admitted


async def test_tokens_restored_by_time_are_not_returned_again(valkey_limits: LimitScripts) -> None:
    rule, mine = limit(TOKENS, 1000), request()
    await valkey_limits.admit([rule], mine, tokens=1000, lease_seconds=LEASE_SECONDS, now=NOW)
    # A minute later everything is available again, and another request uses it.
    await ask(valkey_limits, rule, tokens=1000, now=NOW + 60)
    await valkey_limits.settle([rule], mine, tokens=0, now=NOW + 60)
    assert (await valkey_limits.read([rule], tokens=0, now=NOW + 60)).counts[0].left == 0


async def test_more_tokens_than_reserved_are_owed(valkey_limits: LimitScripts) -> None:
    rule, mine = limit(TOKENS, 1000), request()
    await valkey_limits.admit([rule], mine, tokens=100, lease_seconds=LEASE_SECONDS, now=NOW)
    await valkey_limits.settle([rule], mine, tokens=400, now=NOW)
    assert (await valkey_limits.read([rule], tokens=0, now=NOW)).counts[0].left == 600


async def test_a_slot_is_freed_when_its_lease_expires(valkey_limits: LimitScripts) -> None:
    rule, alive = limit(SLOTS, 20), request()
    await valkey_limits.admit([rule], alive, tokens=0, lease_seconds=500, now=NOW)
    assert sum([await ask(valkey_limits, rule, lease_seconds=5, now=NOW) for _ in range(100)]) == 19
    assert not await ask(valkey_limits, rule, now=NOW + 4.99)
    assert sum([await ask(valkey_limits, rule, now=NOW + 5) for _ in range(100)]) == 19
    assert await valkey_limits.settle([rule], alive, tokens=0, now=NOW + 5)
    assert await ask(valkey_limits, rule, now=NOW + 5)


async def test_a_slot_of_a_killed_gateway_is_free_after_30_s_but_not_before(valkey_limits: LimitScripts) -> None:
    """A killed gateway once locked users out for 312 s."""
    rule, killed, alive = limit(SLOTS, 2), request(), request()
    for mine in (killed, alive):
        assert (await valkey_limits.admit([rule], mine, tokens=0, lease_seconds=310, now=NOW)).admitted
    await valkey_limits.extend([(rule.counter, alive)], now=NOW + 20)
    assert not (await valkey_limits.read([rule], tokens=0, now=NOW + SLOT_SECONDS - 0.1)).admitted
    assert await ask(valkey_limits, rule, now=NOW + SLOT_SECONDS)
    assert not await ask(valkey_limits, rule, now=NOW + SLOT_SECONDS)


async def test_a_clock_that_steps_back_costs_a_minute_at_most(valkey_limits: LimitScripts) -> None:
    minute, tokens = limit(MINUTE, 10), limit(TOKENS, 100)
    for _ in range(3):
        assert await ask(valkey_limits, minute, tokens, now=NOW)
    verdict = await valkey_limits.read([minute, tokens], tokens=10, now=NOW - 86_400)
    assert not verdict.admitted
    assert max(count.retry_after_seconds for count in verdict.counts) <= 60
    assert await ask(valkey_limits, minute, tokens, now=NOW - 86_400 + 60)


async def test_a_lowered_limit_applies_immediately(valkey_limits: LimitScripts) -> None:
    hour = limit(HOUR, 10)
    for _ in range(5):
        await ask(valkey_limits, hour, now=NOW)
    lower = RequestLimit(hour.scope, hour.kind, hour.counter, 3)
    verdict = await valkey_limits.read([lower], tokens=0, now=NOW)
    assert (verdict.admitted, verdict.counts[0].left) == (False, -2)


async def test_every_key_expires(cache: Cache, valkey_limits: LimitScripts) -> None:
    limits = [limit(kind, 100) for kind in LIMITS]
    mine = request()
    await valkey_limits.admit(limits, mine, tokens=10, lease_seconds=30)
    cache.script("ttl", "return redis.call('PTTL', KEYS[1])")
    seconds = {rule.kind: await cache.run("ttl", [rule.counter], []) / 1000 for rule in limits}
    assert 3600 < seconds[HOUR] <= 3720
    assert 60 < seconds[MINUTE] <= 61
    assert 60 < seconds[TOKENS] <= 66
    assert 30 < seconds[SLOTS] <= 90
    assert 0 < await cache.run("ttl", [limit_rules.hold(mine)], []) <= 30_000
    # A shorter lease doesn't cut a longer one short.
    await valkey_limits.admit(limits, request(), tokens=10, lease_seconds=1)
    assert await cache.run("ttl", [limits[-1].counter], []) > 61_000
    await valkey_limits.settle([rule for rule in limits if rule.kind.is_held], mine, tokens=0)
    assert await cache.run("ttl", [limit_rules.hold(mine)], []) == -2


async def test_without_valkey_it_raises_unavailable() -> None:
    async with Cache.open("unix:///nowhere/valkey.sock") as nowhere:
        with pytest.raises(errors.Unavailable, match=NO_VALKEY):
            await LimitScripts(nowhere).read([limit(SLOTS, 1)], tokens=0)


def test_a_hold_is_on_the_cluster_node_of_the_counters() -> None:
    assert "{limits}" in limit_rules.hold(RequestId(UUID(int=1)))
