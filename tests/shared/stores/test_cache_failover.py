"""Two real Valkeys behind one address: the primary becomes a replica, the replica the primary, and then the address leads to the new
primary. Open connections stay with the old one."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis.asyncio as redis

from shared import errors
from shared.stores.cache import NO_VALKEY, Cache, CacheRefuses
from tests import tiers
from tests.servers import ValkeyServer, running
from tests.switch import Switch
from tests.testnet import free_port

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


@dataclass(frozen=True, slots=True)
class Pair:
    primary: ValkeyServer
    replica: ValkeyServer
    switch: Switch
    ports: tuple[int, int]

    @property
    def url(self) -> str:
        return f"unix://{self.switch.path}"

    async def follow(self, server: ValkeyServer, port: int) -> None:
        """Make the server a replica of the other one, and wait until it has all data."""
        async with redis.Redis.from_url(server.url) as client:
            await client.execute_command("REPLICAOF", "127.0.0.1", port)
            async with asyncio.timeout(30):
                while (await client.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - the server sets no event
                    await asyncio.sleep(0.01)

    async def exchange(self) -> None:
        """Let the two servers swap their roles; the address stays as it is."""
        async with redis.Redis.from_url(self.replica.url) as client:
            await client.execute_command("REPLICAOF", "NO", "ONE")
        await self.follow(self.primary, self.ports[1])


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    with running(ValkeyServer) as primary, running(ValkeyServer) as replica:
        yield primary, replica


@pytest.fixture
async def pair(servers: tuple[ValkeyServer, ValkeyServer]) -> AsyncIterator[Pair]:
    ports = free_port(), free_port()
    for server, port in zip(servers, ports, strict=True):
        async with redis.Redis.from_url(server.url) as client:
            await client.execute_command("REPLICAOF", "NO", "ONE")
            await client.flushall()
            await client.config_set("bind", "127.0.0.1")
            await client.config_set("port", port)
            await client.config_set("repl-diskless-sync-delay", 0)
            await client.config_set("replica-serve-stale-data", "yes")
    with tempfile.TemporaryDirectory(prefix="aimesh-") as folder:
        async with Switch(Path(folder, "s"), servers[0].server.socket) as switch:
            made = Pair(*servers, switch, ports)
            await made.follow(made.replica, ports[0])
            yield made


async def count(cache: Cache) -> bool:
    try:
        await cache.run("count", ["t:n"], [1])
    except errors.Unavailable:
        return False
    return True


@pytest.mark.parametrize("is_urgent", tiers.by_day((False, True), False, group="long"))
async def test_after_a_failover_one_call_is_refused_and_the_next_reaches_the_new_primary(pair: Pair, is_urgent: bool) -> None:
    async with Cache.open(pair.url) as cache:
        cache.script("count", COUNT, urgent=is_urgent)
        assert await count(cache)
        await cache.set("t:s", b"1", ttl_seconds=60)
        await pair.exchange()
        with pytest.raises(CacheRefuses, match="READONLY"):
            await cache.run("count", ["t:n"], [1])
        pair.switch.target = pair.replica.server.socket
        # At most one more call fails, on a connection that was opened before the address changed.
        outcomes = [await count(cache) for _ in range(192)]
        assert outcomes.count(False) <= 1
        assert all(outcomes[1:])
        with contextlib.suppress(errors.Unavailable):
            await cache.set("t:s", b"2", ttl_seconds=60)
        await cache.set("t:s", b"3", ttl_seconds=60)
        async with redis.Redis.from_url(pair.replica.url) as client:
            assert await client.get("t:s") == b"3"


async def test_the_health_check_finds_a_replica_and_leads_readers_away_from_it(pair: Pair) -> None:
    async with Cache.open(pair.url) as cache:
        assert (await cache.check()).ok
        await pair.exchange()
        check = await cache.check()
        assert not check.ok
        assert "READONLY" in check.detail
        assert "REDIS_URL" in check.detail
        # A replica answers read-only calls, and would do so forever.
        assert await cache.get("t:n") is None
        pair.switch.target = pair.replica.server.socket
        await cache.check()
        assert (await cache.check()).ok
        async with redis.Redis.from_url(pair.replica.url) as client:
            await client.set("t:n", "new")
            assert await cache.get("t:n") == b"new"


async def test_a_read_that_waits_ends_with_a_failover_and_the_next_reaches_the_new_primary(pair: Pair) -> None:
    async with Cache.open(pair.url) as cache, redis.Redis.from_url(pair.primary.url) as client:
        await cache.append("t:l", b"1", most=10)
        end = await cache.log_end("t:l")
        reading = asyncio.create_task(cache.read_log("t:l", end))
        async with asyncio.timeout(30):
            while not (await client.info("clients"))["blocked_clients"]:
                await asyncio.sleep(0)
                if reading.done():
                    reading = asyncio.create_task(cache.read_log("t:l", end))
        async with redis.Redis.from_url(pair.replica.url) as other:
            await other.execute_command("REPLICAOF", "NO", "ONE")
        pair.switch.target = pair.replica.server.socket
        await client.execute_command("REPLICAOF", "127.0.0.1", pair.ports[1])
        with pytest.raises(errors.Unavailable, match=NO_VALKEY):
            await reading
        async with redis.Redis.from_url(pair.replica.url) as other:
            await other.xadd("t:l", {"e": b"2"})
        assert (await cache.read_log("t:l", end))[0] == [b"2"]


async def test_a_replica_without_its_primary_is_left(pair: Pair) -> None:
    async with redis.Redis.from_url(pair.primary.url) as client:
        await client.config_set("replica-serve-stale-data", "no")
        async with Cache.open(pair.url) as cache:
            await cache.set("t:n", b"1", ttl_seconds=60)
            await client.execute_command("REPLICAOF", "127.0.0.1", 1)
            with pytest.raises(CacheRefuses, match="MASTERDOWN"):
                await cache.get("t:n")
            async with redis.Redis.from_url(pair.replica.url) as other:
                await other.execute_command("REPLICAOF", "NO", "ONE")
            pair.switch.target = pair.replica.server.socket
            with contextlib.suppress(errors.Unavailable):
                await cache.get("t:n")
            assert await cache.get("t:n") == b"1"
