"""The cache with a real Valkey that is killed, emptied and restarted, and with a scripted one."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis
import uvloop

from shared import errors
from shared.node.member import CHECK_SECONDS
from shared.stores import valkey_client
from shared.stores.cache import _CHECK_SECONDS, NO_VALKEY, Cache
from shared.stores.resp import ReplyError
from tests.servers import ValkeyServer
from tests.services.gateway.limits.refusing_valkey import refusing
from tests.shared.stores.fake_valkey import Visitor, answer_a_busy_program, nothing, on_unix

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


async def test_of_many_takers_one_gets_the_value(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        await cache.set("t:once", b"x", ttl_seconds=60)
        taken = await asyncio.gather(*(cache.take("t:once") for _ in range(30)))
        assert sorted(taken, key=str).count(b"x") == 1


async def test_a_log_is_read_in_its_order_from_where_the_reader_was(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache, Cache.open(valkey_url) as other:
        await cache.delete("t:log")
        beginning = await cache.log_end("t:log")
        await cache.append("t:log", b"1", most=10)
        entries, after = await cache.read_log("t:log", beginning)
        assert entries == [b"1"]
        assert after == await cache.log_end("t:log")
        # A waiting reader gets the next entry, and blocks no other call.
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(cache.read_log("t:log", after))
            assert await cache.get("t:nothing") is None
            await other.append("t:log", b"2", most=10)
        entries, after = reading.result()
        assert entries == [b"2"]
        assert await cache.read_log("t:log", after) == ([], after)
        for number in range(500):
            await cache.append("t:log", b"%d" % number, most=10)
        kept, _ = await cache.read_log("t:log", beginning)
        assert len(kept) < 250
        await cache.delete("t:log")


async def test_a_script_runs_again_after_valkey_forgot_it(valkey: ValkeyServer, valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        cache.script("count", COUNT)
        await cache.delete("t:n")
        assert await cache.run("count", ["t:n"], [2]) == 2
        assert await cache.run("count", ["t:n"], [3]) == 5
        valkey.kill()
        await asyncio.sleep(0.02)  # let the loop notice that its connections are gone, as it does when nothing blocks it
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
        await asyncio.sleep(0.02)  # let the loop notice that its connections are gone, as it does when nothing blocks it
        with pytest.raises(errors.Unavailable, match=NO_VALKEY) as away:
            await cache.get("t:x")
        assert not isinstance(away.value.__cause__, TimeoutError), "it waited"
        check = await cache.check()
        assert not check.ok
        assert "REDIS_URL" in check.detail
        valkey.start()
        assert await asyncio.gather(*(cache.get("t:x") for _ in range(20))) == [None] * 20
        assert (await cache.check()).ok


async def test_a_server_that_hangs_is_named_before_the_health_check_is_over(valkey: ValkeyServer, valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache:
        await cache.get("t:x")
        with valkey.hung():
            async with asyncio.timeout(30):
                check = await cache.check()
        assert _CHECK_SECONDS < 0.85 * CHECK_SECONDS
        assert (check.name, check.ok) == ("valkey", False)
        assert check.detail.startswith(f"{NO_VALKEY} (no answer in time)")


async def test_opening_needs_no_server(valkey_url: str) -> None:
    async with Cache.open(valkey_url + ".nowhere") as cache:
        assert not (await cache.check()).ok


@pytest.mark.parametrize("url", ["http://localhost", "redis://:s3cret@localhost:x", "rediss://:s3cret@h?ssl_ca_certs=/no/such"])
async def test_an_address_of_another_kind_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(errors.BadSettings, match="REDIS_URL") as refused:
        async with Cache.open(url):
            pass
    assert "s3cret" not in f"{refused.value} {refused.value.__cause__!r}"


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
        with pytest.raises(ReplyError, match="not an integer"):
            await cache.run("wrong", ["t:text"], [])


async def test_what_a_block_raises_comes_out_of_it_as_it_is(valkey_url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Cache.open(valkey_url) as cache:
            await cache.get("t:x")
            raise ZeroDivisionError


async def test_connected_means_that_every_script_is_known(valkey_url: str) -> None:
    async with Cache.open(valkey_url) as cache, redis.Redis.from_url(valkey_url) as other:
        await other.script_flush()
        before = len(await other.client_list())
        cache.script("count", COUNT)
        cache.script("soon", COUNT + " ", urgent=True)
        await cache.connect()
        assert await other.script_exists(*(script.sha1 for script in cache._scripts.values())) == [True, True]
        assert len(await other.client_list()) == before + 2


# --- access -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def password(valkey_url: str, word: str) -> AsyncIterator[None]:
    async with redis.Redis.from_url(valkey_url) as admin:
        await admin.config_set("requirepass", word)
        try:
            yield
        finally:
            await admin.config_set("requirepass", "")


async def test_a_password_and_a_database_are_in_the_url(valkey_url: str) -> None:
    async with password(valkey_url, "s3c/ret"), Cache.open(f"{valkey_url}?password=s3c%2Fret&db=3") as third:
        await third.set("t:there", b"3", ttl_seconds=9)
        assert await third.get("t:there") == b"3"
        async with Cache.open(f"{valkey_url.replace('unix://', 'unix://:s3c%2Fret@')}") as zeroth:
            assert await zeroth.get("t:there") is None


async def test_a_wrong_password_is_unavailable_and_nobody_reads_it(valkey_url: str) -> None:
    async with password(valkey_url, "right"):
        for wrong in ("?password=s3cret", "?password=s3cret&username=ada", ""):
            async with Cache.open(f"{valkey_url}{wrong}") as cache:
                with pytest.raises(errors.Unavailable, match=NO_VALKEY) as refused:
                    await cache.get("t:x")
                check = await cache.check()
                assert not check.ok
                assert "WRONGPASS" in check.detail or "NOAUTH" in check.detail
                assert "s3cret" not in f"{refused.value} {refused.value.__cause__!r} {check}"


async def test_a_database_that_is_not_there_is_unavailable(valkey_url: str) -> None:
    async with Cache.open(f"{valkey_url}?db=9999") as cache:
        with pytest.raises(errors.Unavailable, match=NO_VALKEY):
            await cache.get("t:x")


# --- a scripted server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["LOADING it reads its file back", "ERR max number of clients reached"])
async def test_one_that_is_not_ready_is_unavailable(words: str) -> None:
    async def refuse(visitor: Visitor, asked: list[bytes]) -> None:
        visitor.say(f"-{words}\r\n".encode())

    async with on_unix(refuse) as (_, path), Cache.open(f"unix://{path}") as cache:
        with pytest.raises(errors.Unavailable, match=NO_VALKEY) as refused:
            await cache.get("t:x")
        assert words in str(refused.value.__cause__)


async def test_urgent_answers_do_not_wait_behind_others() -> None:
    async def only_urgent(visitor: Visitor, asked: list[bytes]) -> None:
        if asked[0] == b"EVALSHA":
            visitor.say(b":5\r\n")

    async with on_unix(only_urgent) as (server, path), Cache.open(f"unix://{path}") as cache:
        cache.script("soon", COUNT, urgent=True)
        waiting = asyncio.create_task(cache.get("t:large"))
        await server.until(asked=1)
        assert await cache.run("soon", ["t:n"], [1], seconds=1) == 5
        assert not waiting.done()
        assert len(server.visitors) == 2
        server.visitors[0].say(b"$-1\r\n")
        assert await waiting is None


@pytest.fixture
async def silent() -> AsyncIterator[Path]:
    async with on_unix(nothing) as (_, path):
        yield path


async def test_the_impatient_wait_no_longer_than_they_say(silent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "SILENCE_SECONDS", 600)
    async with asyncio.timeout(60), Cache.open(f"unix://{silent}") as cache:
        cache.script("count", COUNT)
        began = time.monotonic()
        with pytest.raises(errors.Unavailable, match=NO_VALKEY):
            await cache.run("count", ["t:n"], [1], seconds=0.05)
        assert time.monotonic() - began >= 0.05


async def test_no_answer_to_the_second_call_of_one_run_is_too_late_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey_client, "SILENCE_SECONDS", 600)

    async def not_known(visitor: Visitor, asked: list[bytes]) -> None:
        if asked[0] == b"EVALSHA":
            visitor.say(b"-NOSCRIPT no matching script\r\n")

    async with asyncio.timeout(60), on_unix(not_known) as (server, path), Cache.open(f"unix://{path}") as cache:
        cache.script("count", COUNT)
        with pytest.raises(errors.Unavailable, match=NO_VALKEY):
            await cache.run("count", ["t:n"], [1], seconds=0.05)
        assert [words[0] for words in server.asked] == [b"EVALSHA", b"EVAL"]


async def test_what_this_program_computes_is_not_held_against_valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    began, worked = time.monotonic(), 0.0
    monkeypatch.setattr(time, "thread_time", lambda: worked)

    async def after_work(visitor: Visitor, asked: list[bytes]) -> None:
        nonlocal worked
        for _ in range(12):
            time.sleep(0.05)  # noqa: ASYNC251 - the loop is busy
        worked = time.monotonic() - began
        for _ in range(100):
            await asyncio.sleep(0)
        visitor.say(b":5\r\n")

    async with on_unix(after_work) as (_, path), Cache.open(f"unix://{path}") as cache:
        cache.script("count", COUNT)
        assert await cache.run("count", ["t:n"], [1], seconds=0.5) == 5


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_an_answer_that_came_while_the_loop_slept_is_taken(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def sleep_over_it() -> None:
        async with on_unix(nothing) as (server, path), Cache.open(f"unix://{path}") as cache:
            cache.script("count", COUNT)
            running = asyncio.create_task(cache.run("count", ["t:n"], [1], seconds=0.1))
            await server.until(asked=1)
            await answer_a_busy_program(server, path, b":5\r\n", 0.2)
            assert await running == 5

    run(sleep_over_it())
