"""Sentinels and a cluster, with real servers that die and are replaced while calls run."""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from uuid import uuid4

import pytest

from services.auth.recovery.restored_access import SESSION_KEYS
from services.auth.sessions.failed_logins import FailedLogins
from services.auth.sessions.session_store import SessionStore, StoredLogin, StoredLoginLink
from services.gateway.limits.limit_rules import LimitScope, RequestLimit
from services.gateway.limits.limit_scripts import LimitScripts
from shared import errors
from shared.stores import redis_clients
from shared.stores.cache import Cache
from shared.types import RequestId, UserId
from tests import tiers
from tests.services.gateway.limits.kinds import HOUR
from tests.valkey_groups import Cluster, Watched, cluster, until, watched

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
KINDS = ("count", "set", "get", "append")
#: The specification's limit for a failover; the servers here need a second or two of it.
FAILOVER_SECONDS = 10
LIMIT = RequestLimit(LimitScope.USER, HOUR, "gateway:{limits}:u:1:requests_per_hour", 40)


@pytest.fixture(scope="module")
def started_sentinels() -> Iterator[Watched]:
    with watched() as started:
        yield started


@pytest.fixture
async def sentinels(started_sentinels: Watched) -> Watched:
    for each in (*started_sentinels.servers, *started_sentinels.sentinels):
        each.ensure_running()
    await started_sentinels.settle()
    return started_sentinels


@pytest.fixture(scope="module")
def started_cluster() -> Iterator[Cluster]:
    with cluster() as started:
        yield started


@pytest.fixture
async def shards(started_cluster: Cluster) -> Cluster:
    for each in started_cluster.servers:
        each.ensure_running()
    if b"cluster_known_nodes:1\r" in await started_cluster.servers[0].ask("CLUSTER", "INFO"):
        await started_cluster.form()
    await started_cluster.settle()
    return started_cluster


@dataclass
class Load:
    """Repeats calls of every kind until the block ends. Only Unavailable may be raised."""

    cache: Cache
    counted: int = 0
    refused: int = 0
    slowest: float = 0.0
    last_success: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.cache.script("count", COUNT, urgent=True)
        async with asyncio.TaskGroup() as tasks:
            started = [tasks.create_task(self._repeat(number)) for number in range(8)]
            yield
            for each in started:
                each.cancel()

    async def _repeat(self, number: int) -> None:
        for call in itertools.count():
            began = time.monotonic()
            try:
                kind = KINDS[call % 4]
                match kind:
                    case "count":
                        await self.cache.run("count", [f"t:{{n}}:{number}"], [1])
                        self.counted += 1
                    case "set":
                        await self.cache.set(f"t:s:{number}:{call % 50}", b"1", ttl_seconds=60)
                    case "get":
                        await self.cache.get(f"t:s:{number}:{call % 50}")
                    case _:
                        await self.cache.append(f"t:log:{number}", b"x", most=10)
                self.kinds[kind] += 1
                self.last_success = time.monotonic()
            except errors.Unavailable:
                self.refused += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            # As many calls as possible would only use up the servers' CPU time.
            await asyncio.sleep(0.005)


async def all_kinds_succeed(load: Load, seconds: float) -> float:
    """Wait until 100 more calls of each kind have succeeded; return how long that took."""
    began = time.monotonic()
    before = load.kinds.copy()
    async with asyncio.timeout(seconds):
        while any(load.kinds[kind] < before[kind] + 100 for kind in KINDS):  # noqa: ASYNC110 - a call sets no event
            await asyncio.sleep(0.01)
    return time.monotonic() - began


async def admitted(cache: Cache, times: int) -> int:
    limits = LimitScripts(cache)
    found = 0
    for _ in range(times):
        with contextlib.suppress(errors.Unavailable):
            verdict = await limits.admit([LIMIT], RequestId(uuid4()), tokens=0, lease_seconds=30)
            found += verdict.admitted
    return found


@pytest.mark.parametrize("kill", tiers.by_day((True, False), True, group="long"), ids=["killed", "hung"])
async def test_a_failover_by_sentinels_costs_only_unavailable_and_keeps_limits_and_values(sentinels: Watched, kill: bool) -> None:
    primary = await sentinels.primary()
    async with Cache.open(sentinels.url) as cache:
        await cache.delete_matching("*")
        assert await admitted(cache, 30) == 30
        await cache.set("t:kept", b"kept", ttl_seconds=600)
        # Wait until all writes have reached the replica.
        await primary.ask("WAIT", 1, 5000)
        load = Load(cache)
        async with load.running():
            await all_kinds_succeed(load, 10)
            with contextlib.ExitStack() as stack:
                if kill:
                    primary.kill()
                else:
                    stack.enter_context(primary.hung())
                await until(lambda: moved(sentinels, primary.port))
                await all_kinds_succeed(load, FAILOVER_SECONDS)
                assert await cache.get("t:kept") == b"kept"
                assert (await cache.check()).ok
                assert await admitted(cache, 30) == 10
            # The former primary is back as a replica; no client may use it.
            primary.ensure_running()
            await sentinels.settle()
            await all_kinds_succeed(load, FAILOVER_SECONDS)
        assert load.refused
        assert load.slowest < 2.8


async def moved(sentinels: Watched, port: int) -> bool:
    return (await sentinels.primary()).port != port


async def test_without_any_sentinel_calls_are_unavailable_in_time(sentinels: Watched) -> None:
    async with Cache.open("redis+sentinel://127.0.0.1:1,127.0.0.1:2/main") as cache:
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="does not answer"):
            await cache.get("t:n")
        assert time.monotonic() - began < 2
    async with Cache.open(sentinels.url.replace("/main", "/other")) as cache:
        with pytest.raises(errors.Unavailable, match="does not answer"):
            await cache.get("t:n")


async def test_hung_sentinels_are_passed_over(sentinels: Watched) -> None:
    with sentinels.sentinels[0].hung(), sentinels.sentinels[1].hung():
        async with Cache.open(sentinels.url) as cache:
            await cache.set("t:n", b"1", ttl_seconds=60)
            assert await cache.get("t:n") == b"1"


async def test_a_cluster_runs_all_that_one_server_runs(shards: Cluster) -> None:
    async with Cache.open(shards.url) as cache:
        await cache.delete_matching("*")
        cache.script("count", COUNT)
        await cache.connect()
        assert (await cache.check()).ok
        for number in range(64):
            await cache.set(f"t:{number}", str(number), ttl_seconds=60)
        assert [await cache.get(f"t:{number}") for number in range(64)] == [str(number).encode() for number in range(64)]
        assert await cache.take("t:1") == b"1"
        assert await cache.take("t:1") is None
        end = await cache.log_end("t:log")
        await cache.append("t:log", b"a", most=10)
        assert (await cache.read_log("t:log", end))[0] == [b"a"]
        assert await cache.newest("t:log", most=10) == [b"a"]
        assert await cache.run("count", ["t:n"], [2]) == 2
        # The keys are spread over all three.
        assert all([await server.ask("DBSIZE") for server in shards.servers[:3]])
        await cache.delete_matching("t:*")
        assert [await cache.get(f"t:{number}") for number in range(64)] == [None] * 64


async def test_sessions_failed_logins_and_limits_work_in_a_cluster(shards: Cluster) -> None:
    async with Cache.open(shards.url) as cache:
        await cache.delete_matching("*")
        sessions = SessionStore(cache, idle_seconds=3600, longest_seconds=43_200)
        opened = [await sessions.open(StoredLogin(user_id=user)) for user in (UserId(uuid4()), UserId(uuid4()))]
        assert await sessions.find(opened[0].session.id) is not None
        links = [await sessions.create_link(StoredLoginLink(user_id=each.session.user_id, password_version="")) for each in opened]
        assert await sessions.end_all(opened[0].session.user_id) == 1
        assert [await sessions.find_link(link) is not None for link in links] == [False, True]
        for pattern in SESSION_KEYS:
            await cache.delete_matching(pattern)
        assert await sessions.find(opened[1].session.id) is None
        assert await sessions.find_link(links[1]) is None

        logins = FailedLogins(cache)
        guesses = [await logins.charge("ann", "192.0.2.1"), await logins.charge("ann", browser="b"), await logins.charge("bob")]
        await logins.refund(guesses[0])
        await logins.reset("ann", "192.0.2.1")
        for _ in range(4):
            await logins.charge("ann", "192.0.2.1")
        with pytest.raises(errors.Limited, match="from your address"):
            for _ in range(2):
                await logins.charge("ann", "192.0.2.1")
        assert await admitted(cache, 50) == 40


async def test_keys_that_move_are_followed(shards: Cluster) -> None:
    async with Cache.open(shards.url) as cache:
        cache.script("count", COUNT)
        await cache.delete_matching("*")
        assert await cache.run("count", ["t:{m}"], [1]) == 1
        source = await shards.owner("t:{m}")
        primaries = [each for each in shards.servers if (await each.ask("ROLE"))[0] == b"master"]
        target = next(each for each in primaries if each is not source)
        slot = str(await source.ask("CLUSTER", "KEYSLOT", "m"))
        await target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", await shards.id_of(source))
        await source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", await shards.id_of(target))
        # ASK: the key is not at the source yet, so the target counts it.
        assert await cache.run("count", ["t:{m}:new"], [1]) == 1
        assert await cache.run("count", ["t:{m}"], [1]) == 2
        await source.ask("MIGRATE", "127.0.0.1", target.port, "t:{m}", 0, 5000)
        assert await cache.run("count", ["t:{m}"], [1]) == 3
        for each in (target, *(each for each in primaries if each is not target)):
            await each.ask("CLUSTER", "SETSLOT", slot, "NODE", await shards.id_of(target))
        # MOVED: the source redirects the client to the target.
        assert await cache.run("count", ["t:{m}"], [1]) == 4
        assert await cache.run("count", ["t:{m}:new"], [1]) == 2


async def test_a_shard_that_is_away_stops_only_its_keys(shards: Cluster) -> None:
    async with Cache.open(shards.url) as cache:
        keys = [f"t:{number}" for number in range(16)]
        for key in keys:
            await cache.set(key, b"1", ttl_seconds=60)
        hung = await shards.owner("t:0")
        other = [key for key in keys if (await shards.owner(key)) is not hung][0]  # noqa: RUF015 - next() takes no async generator
        with hung.hung():
            began = time.monotonic()
            here, there = await asyncio.gather(cache.get("t:0"), cache.get(other), return_exceptions=True)
            assert time.monotonic() - began < 2.8
        assert isinstance(here, errors.Unavailable)
        assert there == b"1"
        await until(lambda: answers(cache, "t:0"))


async def answers(cache: Cache, key: str) -> bool:
    try:
        return await cache.get(key) == b"1"
    except errors.Unavailable:
        return False


async def test_a_failover_in_a_cluster_costs_only_unavailable_and_keeps_limits_and_values(shards: Cluster) -> None:
    async with Cache.open(shards.url) as cache:
        await cache.delete_matching("*")
        assert await admitted(cache, 30) == 30
        await cache.set("t:{limits}:kept", b"kept", ttl_seconds=600)
        primary = await shards.owner("x{limits}")
        await primary.ask("WAIT", 1, 5000)
        load = Load(cache)
        async with load.running():
            await all_kinds_succeed(load, 10)
            primary.kill()
            await until(lambda: has_owner(shards))
            await all_kinds_succeed(load, FAILOVER_SECONDS)
            assert await cache.get("t:{limits}:kept") == b"kept"
            assert await admitted(cache, 30) == 10
            primary.ensure_running()
        assert load.refused
        assert load.slowest < 2.8


async def has_owner(shards: Cluster) -> bool:
    try:
        return bool(await shards.owner("x{limits}"))
    except AssertionError:
        return False


async def test_a_cluster_that_is_away_is_unavailable_in_time() -> None:
    async with Cache.open("redis+cluster://127.0.0.1:1,127.0.0.1:2") as cache:
        cache.script("count", COUNT)
        calls: list[Callable[[], object]] = [cache.connect, lambda: cache.get("t:n"), lambda: cache.delete_matching("*")]
        for call in calls:
            began = time.monotonic()
            with pytest.raises(errors.Unavailable, match="does not answer"):
                await call()
            assert time.monotonic() - began < 2
        assert not (await cache.check()).ok


def test_one_address_needs_no_redis_py() -> None:
    code = "import sys, shared.stores.cache, shared.stores.valkey_client; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_cluster_that_is_asked_for_its_health_alone_finds_the_new_primary(shards: Cluster) -> None:
    """A gateway does the same while it counts limits without Valkey until a probe succeeds."""
    async with Cache.open(shards.url) as cache:
        cache.script("count", COUNT)
        await cache.connect()
        primary = await shards.owner("x{limits}")
        await primary.ask("WAIT", 1, 5000)
        primary.kill()
        await until(lambda: has_owner(shards))

        async def is_connected() -> bool:
            with contextlib.suppress(errors.Unavailable):
                await cache.connect()
                return True
            return False

        async with asyncio.timeout(FAILOVER_SECONDS):
            await until(is_connected)
        primary.ensure_running()


async def test_a_call_that_ends_with_the_cache_asks_the_cluster_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_clients, "_AGAIN_SECONDS", 0.01)
    problems: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    async with Cache.open("redis+cluster://127.0.0.1:1") as cache:
        call = asyncio.ensure_future(cache.get("t:n"))
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        with pytest.raises(errors.Unavailable):
            await call
    assert problems == []
