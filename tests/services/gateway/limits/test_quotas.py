"""Limits while Valkey is up, down and back: with fake counters, then with a real server that is killed and suspended."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest

from services.gateway.facts import tiers
from services.gateway.facts.tiers import LimitRules, TierPlan, WithoutValkey
from services.gateway.limits import limit_rules, quotas
from services.gateway.limits.limit_rules import CountedRequest, LimitReached, LimitUsage
from services.gateway.limits.limit_scripts import ANSWER_SECONDS, Argument
from services.gateway.limits.quotas import SLOT_HEARTBEAT_SECONDS, Quotas
from shared import errors
from shared.api.auth import ApiKeyLimits, Principal
from shared.stores.cache import Cache
from shared.telemetry import Metrics
from shared.types import KeyId, ModelName, RequestId, Tier, UserId, UserRole
from tests.servers import ValkeyServer
from tests.services.gateway.fake_counters import FakeCounters
from tests.services.gateway.limits.kinds import MINUTE, SLOTS, TOKENS
from tests.services.gateway.limits.patient_counters import PatientCounters
from tests.services.gateway.limits.refusing_valkey import refusing
from tests.services.gateway.log_lines import Lines
from tests.stopwatch import HANG_SECONDS

ADA = Principal(UserId(UUID(int=1)), "ada", UserRole.USER, Tier.FREE)
MODEL = ModelName("smollm2")
HOURLY = replace(tiers.NO_LIMITS, requests_per_hour=10)
#: How long Valkey didn't answer on two busy cores; this was seen twice.
BUSY_SECONDS = 0.12


class ApiClient:
    """Quotas and their metrics."""

    def __init__(
        self,
        counters: Any,
        plan: TierPlan,
        *,
        models: dict[ModelName, TierPlan] | None = None,
        mode: WithoutValkey = "degrade",
        gateways: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = Metrics("gateway")
        rules = LimitRules(plans={Tier.FREE: plan, Tier.ENTERPRISE: tiers.NO_LIMITS}, models=models or {})
        self.quotas = Quotas(counters, lambda: rules, self.metrics, lambda: gateways, clock, without_valkey=mode)

    async def spend(self, caller: Principal = ADA, *, tokens: int = 10, model: ModelName = MODEL) -> LimitUsage:
        return await self.quotas.spend(self.quotas.limits(caller, model), RequestId(uuid4()), tier=caller.tier, tokens=tokens, seconds=30)

    async def let_in(self, times: int) -> int:
        found = await asyncio.gather(*(self.spend() for _ in range(times)), return_exceptions=True)
        assert all(isinstance(one, LimitUsage | LimitReached) for one in found), found
        return sum(isinstance(one, LimitUsage) for one in found)

    @property
    def decisions(self) -> tuple[float, float, float]:
        """Return the numbers of admitted, refused and uncounted requests."""
        admitted, refused, uncounted = (
            self.metrics.registry.get_sample_value("ai_platform_ratelimit_decisions_total", {"decision": word}) or 0.0
            for word in ("admitted", "refused", "uncounted")
        )
        return admitted, refused, uncounted

    @property
    def degraded(self) -> bool:
        return "ai_platform_ratelimit_degraded 1.0" in self.metrics.render()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self.quotas.watch())
        try:
            yield
        finally:
            assert not watching.done(), watching
            watching.cancel()


@pytest.fixture
def counters() -> FakeCounters:
    return FakeCounters()


# --- Valkey is up -------------------------------------------------------------------------------------------------------


async def tokens_left(api_client: ApiClient) -> int:
    (left,) = await api_client.quotas.read(ADA)
    return left.remaining


async def test_a_running_request_counts_more_tokens_and_is_settled_with_them(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, tokens_per_minute=1000))
    usage = await api_client.spend(tokens=100)
    assert [await api_client.quotas.extend(usage, tokens=tokens) for tokens in (600, 600, 1001)] == [True, True, False]
    assert await tokens_left(api_client) == 400
    await api_client.quotas.settle(usage, tokens=550)
    assert await tokens_left(api_client) == 450


@pytest.mark.parametrize(("mode", "granted"), [("degrade", True), ("open", True), ("closed", False)])
async def test_while_valkey_is_down_a_counted_request_is_extended_by_the_setting(
    counters: FakeCounters, mode: WithoutValkey, granted: bool
) -> None:
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, tokens_per_minute=1000), mode=mode)
    usage = await api_client.spend(tokens=100)
    counters.away = True
    assert await api_client.quotas.extend(usage, tokens=500) is granted
    counters.away = False
    await api_client.quotas.settle(usage, tokens=300)
    assert await tokens_left(api_client) == 700, "settled by what it used"


async def test_a_request_that_is_counted_here_is_extended_here(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, tokens_per_minute=1000))
    counters.away = True
    usage = await api_client.spend(tokens=100)
    assert usage.counted is CountedRequest.HERE
    assert [await api_client.quotas.extend(usage, tokens=tokens) for tokens in (900, 1001)] == [True, False]
    await api_client.quotas.settle(usage, tokens=500)
    assert await tokens_left(api_client) == 500


async def test_a_refusal_names_the_limit_and_the_wait(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, TierPlan(requests_per_hour=100, requests_per_minute=10))
    usage = [await api_client.spend() for _ in range(10)]
    assert usage[-1].tightest.requests is not None
    assert (usage[-1].tightest.requests.kind, usage[-1].tightest.requests.remaining) == (MINUTE.name, 0)
    with pytest.raises(LimitReached, match="the free tier's limit of 10 requests per minute is used up") as refused:
        await api_client.spend()
    assert refused.value.retry_after_seconds == pytest.approx(6, abs=0.01)


async def test_the_tightest_of_user_key_and_model_applies(counters: FakeCounters) -> None:
    api_client = ApiClient(
        counters, TierPlan(requests_per_hour=100, concurrency=5), models={MODEL: replace(tiers.NO_LIMITS, concurrency=3)}
    )
    of_key = replace_key(ADA, ApiKeyLimits(concurrency=2))
    await api_client.spend(of_key)
    await api_client.spend(of_key)
    with pytest.raises(LimitReached, match="this key's limit of 2 concurrent requests is reached"):
        await api_client.spend(of_key)
    await api_client.spend()
    with pytest.raises(LimitReached, match="the model's limit of 3 concurrent requests is reached"):
        await api_client.spend()
    await api_client.spend(model=ModelName("other"))
    (hour, *_) = await api_client.quotas.read(ADA)
    assert hour.used == 4


def replace_key(principal: Principal, limited: ApiKeyLimits) -> Principal:
    return Principal(principal.user_id, "ada", UserRole.USER, Tier.FREE, KeyId(UUID(int=2)), "k", limited)


@pytest.mark.parametrize("away", [False, True])
async def test_refused_requests_of_three_gateways_count_as_one_per_minute_each(counters: FakeCounters, away: bool) -> None:
    """While Valkey is down, each gateway has its share, which is rounded up to one."""
    counters.away = away
    plan = replace(tiers.NO_LIMITS, requests_per_minute=2, requests_per_hour=5, tokens_per_minute=9, concurrency=1)
    now = 1.0
    gateways = [ApiClient(counters, plan, gateways=3, clock=lambda: now) for _ in range(3)]
    refused = [errors.BadRequest("no") for _ in range(3)]
    for gateway, error in zip(gateways[: 3 if away else 2], refused, strict=False):
        await gateway.quotas.count_refused(ADA, error)
        assert limit_rules.attached_limits(error) is not None
        await gateway.quotas.count_refused(ADA, error)
    for gateway in gateways:
        gateway.quotas.ensure_left(gateway.quotas.limits(ADA), ADA.tier)
        for _ in range(2):
            with pytest.raises(LimitReached, match=r"limit of 2 requests per minute( \(this gateway's share: 1\))? is used up") as reached:
                await gateway.quotas.count_refused(ADA, errors.BadRequest("no"))
        wait_seconds = reached.value.retry_after_seconds
        assert wait_seconds
        with pytest.raises(LimitReached, match="limit of 2 requests per minute is used up") as unread:
            gateway.quotas.ensure_left(gateway.quotas.limits(ADA), ADA.tier)
        assert unread.value.retry_after_seconds == pytest.approx(wait_seconds)
    if not away:
        (hour, minute, tokens, slots) = await gateways[0].quotas.read(ADA)
        assert (hour.used, minute.used, tokens.used, slots.used) == (0, 2, 0, 0)
    now += wait_seconds
    gateways[0].quotas.ensure_left(gateways[0].quotas.limits(ADA), ADA.tier)


async def test_a_request_that_never_fits_is_refused_without_a_retry(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, tokens_per_minute=1000))
    with pytest.raises(errors.TokensTooLarge, match="1001 tokens, but the limit is 1000"):
        await api_client.spend(tokens=1001)
    assert not counters.calls
    assert limit_rules.most_tokens(api_client.quotas.limits(ADA, MODEL)) == 1000
    await api_client.spend(tokens=1000)


async def test_a_caller_without_limits_costs_no_call(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, HOURLY)
    rich = Principal(UserId(UUID(int=9)), "eve", UserRole.USER, Tier.ENTERPRISE)
    usage = await api_client.spend(rich)
    await api_client.quotas.settle(usage, tokens=5)
    assert await api_client.quotas.read(rich) == ()
    assert (usage.counted, counters.calls, limit_rules.most_tokens(api_client.quotas.limits(rich, MODEL))) == (
        CountedRequest.NOWHERE,
        0,
        None,
    )


async def test_every_limit_in_force_is_listed_with_its_source(counters: FakeCounters) -> None:
    hourly = tiers.with_old_setting(tiers.TierPlan(requests_per_hour=100, requests_per_minute=10), "DEFAULT_RATE_LIMIT", 50, {})
    plan = tiers.changed(hourly, {"concurrency": "4"}, setting="TIER_FREE")
    models = tiers.of_models({"smollm2.concurrency": "3", "secret.concurrency": "9"})
    api_client = ApiClient(counters, plan, models=models)
    caller = msgspec.structs.replace(ADA, key_id=KeyId(UUID(int=5)), key_limits=ApiKeyLimits(tokens_per_minute=500))
    await api_client.spend(caller)
    found, _ = await api_client.quotas.look(caller, lambda model: model == MODEL)
    assert [(one.scope, one.kind, one.name, one.used, one.limit, one.source) for one in found] == [
        ("user", "requests_per_hour", "", 1, 50, "DEFAULT_RATE_LIMIT"),
        ("user", "concurrency", "", 1, 4, "TIER_FREE"),
        ("key", "tokens_per_minute", "", 10, 500, "key"),
        ("model", "concurrency", "smollm2", 1, 3, "MODEL_LIMITS"),
    ]
    assert [one.scope for one in await api_client.quotas.read(ADA)] == ["user", "user"]


@pytest.mark.parametrize("away", [False, True])
async def test_slots_are_held_exactly_while_their_requests_run(counters: FakeCounters, away: bool) -> None:
    now = 1_000_000.0
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, concurrency=3), clock=lambda: now)
    if away:
        counters.away = True
        api_client.quotas._breaker.failed(now, times=100)
    running, settled = await api_client.spend(), await api_client.spend()
    for _ in range(4):
        now = counters.now = now + SLOT_HEARTBEAT_SECONDS
        await api_client.quotas.extend_slots()
    await api_client.quotas.settle(settled, tokens=0)
    await api_client.quotas.extend_slots()
    assert await api_client.let_in(5) == 2
    # The other request is never settled, but its deadline passes.
    for _ in range(10):
        now = counters.now = now + SLOT_HEARTBEAT_SECONDS
        await api_client.quotas.extend_slots()
    assert await api_client.let_in(5) == 3
    await api_client.quotas.settle(running, tokens=0)


@pytest.mark.parametrize("away", [False, True])
async def test_each_decision_is_counted_once(counters: FakeCounters, away: bool) -> None:
    counters.away = away
    api_client = ApiClient(counters, replace(HOURLY, tokens_per_minute=1000))
    assert api_client.decisions == (0, 0, 0)
    assert await api_client.let_in(12) == 10
    assert api_client.decisions == (10, 2, 0)
    with pytest.raises(errors.TokensTooLarge, match="the prompt and max_tokens add up to "):
        await api_client.spend(tokens=1001)
    await api_client.spend(Principal(UserId(UUID(int=9)), "eve", UserRole.USER, Tier.ENTERPRISE))
    assert api_client.decisions == (11, 3, 0)


@pytest.mark.parametrize("away", [False, True])
async def test_unused_tokens_are_returned_once(counters: FakeCounters, away: bool) -> None:
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, tokens_per_minute=1000, concurrency=1))
    counters.away = away
    usage = await api_client.spend(tokens=900)
    with pytest.raises(LimitReached, match="the free tier's limit of 1 concurrent requests is reached"):
        await api_client.spend()
    for _ in range(3):
        await api_client.quotas.settle(usage, tokens=100)
    left = {one.kind: one.remaining for one in await api_client.quotas.read(ADA)}
    # Degraded mode uses the real clock, so some tokens may have been restored meanwhile.
    assert left[SLOTS.name] == 1
    assert left[TOKENS.name] == 900 if not away else 900 <= left[TOKENS.name] <= 1000


# --- Valkey is down -----------------------------------------------------------------------------------------------------


async def test_without_valkey_a_gateway_counts_its_share(counters: FakeCounters) -> None:
    counters.away = True
    api_client = ApiClient(counters, HOURLY, gateways=3)
    assert await api_client.let_in(30) == 4
    assert api_client.degraded
    assert counters.calls < 40


async def test_a_request_larger_than_the_share_uses_all_of_it(counters: FakeCounters) -> None:
    counters.away = True
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, tokens_per_minute=1000), gateways=3)
    await api_client.spend(tokens=900)
    with pytest.raises(LimitReached, match=r"the free tier's limit of 1000 tokens per minute \(this gateway's share: 400\) is used up"):
        await api_client.spend(tokens=10)


async def test_open_admits_everything_and_closed_nothing(counters: FakeCounters) -> None:
    counters.away = True
    opened = ApiClient(counters, HOURLY, mode="open")
    assert await opened.let_in(30) == 30
    assert opened.decisions == (0, 0, 30)
    closed = ApiClient(counters, HOURLY, mode="closed")
    for _ in range(8):
        with pytest.raises(errors.Unavailable, match="requests can't be counted: Valkey is down"):
            await closed.spend()
    assert closed.decisions == (0, 8, 0)


async def test_five_failures_in_a_row_open_the_breaker(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, HOURLY)
    for _ in range(3):
        counters.away = True
        for _ in range(4):
            await api_client.quotas.read(ADA)
        counters.away = False
        await api_client.quotas.read(ADA)
    assert not api_client.degraded
    counters.away = True
    for _ in range(5):
        await api_client.quotas.read(ADA)
    assert api_client.degraded


async def test_requests_that_end_during_an_outage_are_settled_afterwards(counters: FakeCounters) -> None:
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, concurrency=2))
    usage = [await api_client.spend(), await api_client.spend()]
    counters.away = True
    for one in usage:
        await api_client.quotas.settle(one, tokens=0)
    counters.away = False
    with pytest.raises(LimitReached, match="the free tier's limit of 2 concurrent requests is reached"):
        await api_client.spend()
    async with api_client.watched(), asyncio.timeout(HANG_SECONDS):
        while (await api_client.quotas.read(ADA))[0].remaining < 2:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_a_cancellation_after_valkey_counted_is_settled() -> None:
    class Slow(FakeCounters):
        """Counts, but answers too late."""

        def __init__(self) -> None:
            super().__init__()
            self.counted = asyncio.Event()

        async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> list[int]:
            answer = await super().run(script, keys, args, seconds=seconds)
            if script == "admit_request" and args[1]:
                self.counted.set()
                await asyncio.Event().wait()
            return answer

    counters = Slow()
    api_client = ApiClient(counters, replace(tiers.NO_LIMITS, concurrency=1))
    asking = asyncio.create_task(api_client.spend())
    await counters.counted.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await api_client.quotas.read(ADA))[0].remaining == 0
    async with api_client.watched(), asyncio.timeout(HANG_SECONDS):
        while (await api_client.quotas.read(ADA))[0].remaining < 1:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("others_are_answered", [True, False])
async def test_a_slow_call_opens_the_breaker_unless_others_are_answered(others_are_answered: bool) -> None:
    now = [100.0]

    class Slow(FakeCounters):
        is_slow = True

        async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> list[int]:
            if not self.is_slow:
                return await super().run(script, keys, args, seconds=seconds)
            self.is_slow = False
            if others_are_answered:
                await api_client.quotas.read(ADA)
            now[0] += 2 * ANSWER_SECONDS
            raise errors.Unavailable("Valkey does not answer")

    api_client = ApiClient(Slow(), HOURLY, clock=lambda: now[0])
    await api_client.quotas.read(ADA)
    assert api_client.degraded is not others_are_answered


# --- a real Valkey ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watched_quotas(valkey_url: str, counters: Callable[[Cache], Any]) -> AsyncIterator[ApiClient]:
    async with Cache.open(valkey_url) as cache:
        api_client = ApiClient(counters(cache), TierPlan(requests_per_hour=100, concurrency=1000))
        await api_client.quotas.connect()
        async with api_client.watched():
            yield api_client


class CountingCache:
    """A cache that counts its script calls, except the probes that check whether Valkey is back."""

    def __init__(self, cache: Cache) -> None:
        self.script, self.connect = cache.script, cache.connect
        self.calls = 0
        self._cache = cache

    async def run(self, script: str, keys: Sequence[str], args: Sequence[Argument], *, seconds: float | None = None) -> list[int]:
        self.calls += quotas._PROBE.counter not in keys
        found: list[int] = await self._cache.run(script, keys, args, seconds=seconds)
        return found


@pytest.fixture
async def api_client(valkey_url: str) -> AsyncIterator[ApiClient]:
    async with watched_quotas(valkey_url, lambda cache: cache) as api_client:
        yield api_client


async def test_exactly_the_limit_of_four_hundred_concurrent_requests_is_admitted(valkey_url: str) -> None:
    async with watched_quotas(valkey_url, PatientCounters) as api_client:
        assert await api_client.let_in(400) == 100
        assert not api_client.degraded


async def until_it_counts_again(api_client: ApiClient) -> None:
    async with asyncio.timeout(30):
        while api_client.degraded:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_valkey_is_killed_and_restarted_without_an_error(valkey_url: str, valkey: ValkeyServer) -> None:
    async with watched_quotas(valkey_url, PatientCounters) as api_client:
        await kill_and_bring_back(api_client, valkey)


async def kill_and_bring_back(api_client: ApiClient, valkey: ValkeyServer) -> None:
    assert await api_client.let_in(5) == 5
    valkey.kill()
    try:
        assert await api_client.let_in(50) == 50
        assert api_client.degraded
    finally:
        # Not in a thread: Valkey would die with the thread.
        valkey.ensure_running()
    await until_it_counts_again(api_client)
    # Valkey still has what it saved, and counts again.
    assert 95 <= await api_client.let_in(120) <= 100


async def test_valkey_is_suspended_and_resumed_without_an_error(valkey_url: str, valkey: ValkeyServer) -> None:
    caches: list[CountingCache] = []

    def counting(cache: Cache) -> CountingCache:
        caches.append(CountingCache(cache))
        return caches[0]

    async with watched_quotas(valkey_url, counting) as api_client:
        assert await api_client.let_in(5) == 5
        (cache,) = caches
        before = cache.calls
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                await api_client.spend()
            assert api_client.degraded
            assert cache.calls - before == 1, "only the first request waits"
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        await until_it_counts_again(api_client)
        # Valkey may have counted the request when it resumed, although no caller waited for the answer.
        hour, at_once = await api_client.quotas.read(ADA)
        assert 5 <= hour.used <= 6
        assert at_once.used in {5, 6}


async def test_a_pause_of_valkey_on_a_busy_machine_lets_nobody_exceed_a_limit(valkey_url: str, valkey: ValkeyServer) -> None:
    async with watched_quotas(valkey_url, lambda cache: cache) as api_client:
        assert await api_client.let_in(50) == 50
        os.kill(valkey.pid, signal.SIGSTOP)
        asyncio.get_running_loop().call_later(BUSY_SECONDS, os.kill, valkey.pid, signal.SIGCONT)
        try:
            assert await api_client.let_in(100) == 50
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        assert not api_client.degraded


REASONS = ["MISCONF", "NOREPLICAS", "OOM", "READONLY", "MASTERDOWN", "BUSY"]


@pytest.mark.parametrize("reason", REASONS)
async def test_a_read_only_valkey_counts_as_down(
    api_client: ApiClient, valkey_url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(monkeypatch)
    assert await api_client.let_in(5) == 5
    async with refusing(valkey_url, reason):
        usage = await api_client.spend()
        assert api_client.degraded, "it refuses all writes"
        assert usage.counted is CountedRequest.HERE
        # A full Valkey still accepts commands that free memory, which doesn't mean that it is healthy.
        await api_client.quotas.settle(usage, tokens=0)
        assert await api_client.let_in(50) == 50
        assert api_client.degraded
        assert await api_client.let_in(100) == 49, "counting is local, whatever Valkey counted"
    (line,) = lines.of("valkey is not counting limits")
    assert reason in line
    await until_it_counts_again(api_client)
    assert (await api_client.spend()).counted is CountedRequest.VALKEY


@pytest.mark.parametrize("reason", ["OOM", "NOREPLICAS"])
async def test_open_and_closed_apply_to_a_read_only_valkey(valkey_url: str, reason: str) -> None:
    async with Cache.open(valkey_url) as cache, refusing(valkey_url, reason):
        assert await ApiClient(cache, HOURLY, mode="open").let_in(30) == 30
        closed = ApiClient(cache, HOURLY, mode="closed")
        for _ in range(3):
            with pytest.raises(errors.Unavailable, match="requests can't be counted: Valkey is down"):
                await closed.spend()
        assert closed.degraded
