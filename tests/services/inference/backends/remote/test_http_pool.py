"""Shared connections, over real sockets."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.inference.backends.remote import http_connection
from services.inference.backends.remote.http_connection import (
    MAX_WAITING_BYTES,
    HttpConnectionPool,
    HttpServerConnection,
    PoolExhausted,
)
from services.inference.backends.remote.http_messages import BrokenReply, HttpFailure, ServerOrigin
from tests.services.inference.raw_http import ASKED, KEPT, RawServer, Serve, asked, once, raw_server, saying, silent
from tests.services.inference.standins import until
from tests.testnet import free_port


@asynccontextmanager
async def pooled(
    serve: Serve, connections: int = 2, *, turn_seconds: float = 10, idle_seconds: float = 10
) -> AsyncIterator[tuple[RawServer, HttpConnectionPool]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_connection, "TURN_SECONDS", turn_seconds)
        patch.setattr(http_connection, "IDLE_SECONDS", idle_seconds)
        async with raw_server(serve) as server, http_connection.opened(server.origin, connections, 5) as pool:
            yield server, pool


def soon(seconds: float = 10) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(pool: HttpConnectionPool) -> HttpServerConnection:
    connection, _ = await pool.ask(ASKED, soon())
    return connection


async def finish(pool: HttpConnectionPool, connection: HttpServerConnection) -> None:
    while await connection.read(soon()):
        pass
    pool.release(connection)


async def test_one_after_the_other_takes_one_connection() -> None:
    async with pooled(saying(KEPT)) as (server, pool):
        for _ in range(5):
            await finish(pool, await ask(pool))
        assert server.connections == 1


async def test_the_warmest_connection_is_taken() -> None:
    async with pooled(saying(KEPT)) as (_, pool):
        first, second = await ask(pool), await ask(pool)
        await finish(pool, first)
        await finish(pool, second)
        assert await ask(pool) is second


async def test_what_has_not_come_to_its_end_is_closed_at_once() -> None:
    async with pooled(saying(KEPT[:-1]), 1) as (server, pool):
        pool.release(await ask(pool))
        await until(lambda: server.left == 1, seconds=5)
        pool.release(await ask(pool))
        assert server.connections == 2


async def test_what_is_left_of_a_large_answer_does_not_keep_the_next_one_from_coming() -> None:
    # One byte more than may wait, so the connection stops reading.
    size = MAX_WAITING_BYTES + 1
    async with pooled(saying(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size)), 1) as (server, pool):
        connection = await ask(pool)
        await until(lambda: connection._is_paused)
        pool.release(connection)
        await finish(pool, await ask(pool))
        assert server.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(KEPT + KEPT, id="more than was asked for"),
        pytest.param(KEPT + b"garbage", id="garbage behind it"),
        pytest.param(KEPT.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), id="it says that it closes"),
    ],
)
async def test_what_cannot_be_trusted_is_not_used_again(answer: bytes) -> None:
    async with pooled(saying(answer), 1) as (server, pool):
        for _ in range(3):
            await finish(pool, await ask(pool))
        assert server.connections == 3


async def test_a_connection_that_is_not_used_is_closed_in_time() -> None:
    async with pooled(saying(KEPT), idle_seconds=0.02) as (server, pool):
        first, second = await ask(pool), await ask(pool)
        await finish(pool, first)
        await finish(pool, second)
        await until(lambda: server.left == 2, seconds=5)
        await finish(pool, await ask(pool))
        assert server.connections == 3


async def test_each_connection_is_closed_in_its_own_time() -> None:
    idle_seconds = 1.0
    async with pooled(saying(KEPT), idle_seconds=idle_seconds) as (server, pool):
        first, second = await ask(pool), await ask(pool)
        await finish(pool, first)
        await asyncio.sleep(0.7 * idle_seconds)
        began = time.monotonic()
        await finish(pool, second)
        await until(lambda: not first.is_open, seconds=5)
        await until(lambda: not second.is_open, seconds=5)
        assert time.monotonic() - began >= idle_seconds
        await until(lambda: server.left == 2, seconds=5)


async def test_a_connection_that_the_server_closed_meanwhile_is_not_taken_where_there_is_another() -> None:
    async def leaves_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if server.connections == 1:
            await saying(KEPT)(reader, writer)
        await asked(reader)
        writer.write(KEPT)
        await is_kept.wait()

    is_kept = asyncio.Event()
    async with pooled(leaves_second) as (server, pool):
        first, second = await ask(pool), await ask(pool)
        await finish(pool, first)
        await finish(pool, second)
        is_kept.set()
        await until(lambda: not second.is_open)
        assert await ask(pool) is first
        assert server.connections == 2


async def test_a_connection_that_is_closed_in_the_moment_of_reuse_is_replaced_at_once() -> None:
    async def one_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(KEPT)
        await asked(reader)

    async with pooled(one_answer, 1) as (server, pool):
        for _ in range(4):
            await finish(pool, await ask(pool))
        assert server.connections == 4


async def test_a_new_connection_that_fails_is_not_replaced() -> None:
    async with pooled(once(b""), 1) as (server, pool):
        for asked_times in (1, 2):
            with pytest.raises(BrokenReply):
                await ask(pool)
            assert server.connections == asked_times


async def test_there_are_never_more_than_allowed_and_the_next_one_waits() -> None:
    async with pooled(saying(KEPT), 256, turn_seconds=0.5) as (server, pool):
        connections = await asyncio.gather(*(ask(pool) for _ in range(256)))
        with pytest.raises(PoolExhausted):
            await ask(pool)
        waiting = [asyncio.create_task(ask(pool)) for _ in range(2)]
        await asyncio.sleep(0)
        # One waiter gets the connection of a finished request, the other the slot of an aborted one.
        await finish(pool, connections[0])
        connections[1].abort()
        pool.release(connections[1])
        assert await waiting[0] is connections[0]
        assert await waiting[1] not in connections
        assert server.connections == 257


async def test_whoever_waits_first_is_served_first() -> None:
    async with pooled(saying(KEPT), 1) as (_, pool):
        served: list[int] = []

        async def one(number: int) -> None:
            connection = await ask(pool)
            served.append(number)
            await finish(pool, connection)

        await asyncio.gather(*(one(number) for number in range(20)))
        assert served == list(range(20))


async def test_whoever_goes_while_waiting_takes_no_place_along() -> None:
    async with pooled(saying(KEPT), 1) as (server, pool):
        for is_finished in (True, False):
            connection = await ask(pool)
            waiting = [asyncio.create_task(ask(pool)) for _ in range(3)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
            if not is_finished:
                connection.abort()
            pool.release(connection)
            # The second waiter has been assigned the connection, or its slot, but has not run yet.
            waiting[1].cancel()
            await finish(pool, await waiting[2])
            assert [task.cancelled() for task in waiting] == [True, True, False]
        await finish(pool, await ask(pool))
        assert server.connections == 2


async def test_waiting_ends_with_the_patience_of_the_request() -> None:
    async with pooled(silent, 1) as (_, pool):
        first = asyncio.create_task(ask(pool))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await pool.ask(ASKED, soon(0.02))
        first.cancel()
        await asyncio.wait([first])


async def test_a_server_that_is_not_there_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "TURN_SECONDS", 0.01)
    async with http_connection.opened(ServerOrigin("127.0.0.1", free_port(), False, "x", ""), 1, 5) as pool:
        for _ in range(3):
            with pytest.raises(HttpFailure, match="no connection"):
                await ask(pool)


async def test_closing_the_pool_ends_what_is_under_way() -> None:
    async with raw_server(silent) as server:
        async with http_connection.opened(server.origin, 2, 5) as pool:
            asking = asyncio.create_task(ask(pool))
            await until(lambda: server.connections)
        with pytest.raises(BrokenReply, match="closed here"):
            await asking
        await until(lambda: server.left == 1)
