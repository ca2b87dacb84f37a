"""The Valkey client against a real Valkey that is killed, emptied and restarted."""

import asyncio
import time

import pytest
from redis import exceptions

from shared import errors
from shared.cache import Cache
from tests.servers import ValkeyServer
from tests.services.gateway.limiting.refusing_valkey import refusing

COUNT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


async def test_values_live_for_their_time(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        await cache.set("t:short", b"1", ttl_seconds=0.01)
        await cache.set("t:long", "2", ttl_seconds=60)
        await asyncio.sleep(0.02)
        assert await cache.get("t:short") is None
        assert await cache.get("t:long") == b"2"
        assert await cache.delete("t:long", "t:short") == 1
        assert await cache.get("t:long") is None


async def test_prolonging_what_has_gone_does_not_bring_it_back(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        await cache.set("t:p", b"1", ttl_seconds=0.04)
        assert await cache.prolong("t:p", ttl_seconds=60) == b"1"
        await asyncio.sleep(0.05)
        assert await cache.prolong("t:p", ttl_seconds=60) == b"1"
        await cache.delete("t:p")
        assert await cache.prolong("t:p", ttl_seconds=60) is None
        assert await cache.get("t:p") is None


async def test_of_many_takers_one_gets_the_value(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        await cache.set("t:once", b"x", ttl_seconds=60)
        taken = await asyncio.gather(*(cache.take("t:once") for _ in range(30)))
        assert sorted(taken, key=str).count(b"x") == 1


async def test_a_script_runs_again_after_valkey_forgot_it(valkey: ValkeyServer, valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        cache.script("count", COUNT)
        await cache.delete("t:n")
        assert await cache.run("count", ["t:n"], [2]) == 2
        assert await cache.run("count", ["t:n"], [3]) == 5
        valkey.kill()
        await asyncio.sleep(0.02)  # the loop hears that its connections are gone, as it does when nothing blocks it
        valkey.start()
        await cache.delete("t:n")
        assert await cache.run("count", ["t:n"], [1]) == 1
        with pytest.raises(KeyError):
            await cache.run("no such script", [], [])


async def test_more_calls_than_connections_wait_their_turn(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        cache.script("count", COUNT)
        await cache.delete("t:many")
        await asyncio.gather(*(cache.run("count", ["t:many"], [1]) for _ in range(300)))
        assert await cache.get("t:many") == b"300"


async def test_a_killed_server_is_unavailable_at_once_and_used_again_when_it_is_back(valkey: ValkeyServer, valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        await asyncio.gather(*(cache.get("t:x") for _ in range(20)))
        valkey.kill()
        await asyncio.sleep(0.02)  # the loop hears that its connections are gone, as it does when nothing blocks it
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match="Valkey does not answer"):
            await cache.get("t:x")
        check = await cache.check()
        assert not check.ok
        assert "REDIS_URL" in check.detail
        assert time.monotonic() - began < 1
        valkey.start()
        assert await asyncio.gather(*(cache.get("t:x") for _ in range(20))) == [None] * 20
        assert (await cache.check()).ok


async def test_opening_needs_no_server(valkey_url: str) -> None:
    async with Cache.open(valkey_url + ".nowhere") as cache:
        assert not (await cache.check()).ok


async def test_an_address_of_another_kind_is_a_wrong_setting() -> None:
    with pytest.raises(errors.BadSettings, match="REDIS_URL"):
        async with Cache.open("http://localhost"):
            pass


@pytest.mark.parametrize("reason", ["MISCONF", "NOREPLICAS", "OOM", "READONLY", "MASTERDOWN", "BUSY"])
async def test_a_valkey_that_refuses_is_unavailable_and_says_why(valkey_url: str, reason: str) -> None:
    async with Cache.open(valkey_url) as cache:
        cache.script("count", COUNT)
        async with refusing(valkey_url, reason):
            for call in (cache.run("count", ["t:n"], [1]), cache.set("t:s", b"1", ttl_seconds=1)):
                with pytest.raises(errors.Unavailable) as refused:
                    await call
                assert reason in refused.value.message or reason in str(refused.value.__cause__) or reason == "MASTERDOWN"
        assert await cache.run("count", ["t:n"], [1]) == 1


async def test_a_mistake_of_ours_is_no_refusal(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        cache.script("wrong", "return redis.call('INCR', KEYS[1])")
        await cache.set("t:text", b"x", ttl_seconds=9)
        with pytest.raises(exceptions.ResponseError):
            await cache.run("wrong", ["t:text"], [])
