"""A peer that floods its link is disconnected before it costs much, and an honest peer is never affected."""

import asyncio
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from shared import errors, rpc
from shared.api import auth, node
from shared.node.lifecycle import background
from shared.protocol import wire
from shared.protocol.wire import Call, Cancel, Error, Frame, Reply
from shared.rpc import bodies
from shared.rpc.connection import MAX_UNREAD_BYTES, RESETS_AT_ONCE, RESETS_PER_SECOND, RpcConnection
from shared.transports.link import Link
from shared.types import NodeId, Peer, Role

BODY = bodies.encode(auth.LoginUser(auth.Credentials("hang")))
HEALTH = bodies.encode(node.ReadHealth())


class OneSidedLink(Link):
    """A link whose far end is the test, which sends frames, and reads the answers or doesn't."""

    def __init__(self, *, reads: bool = True) -> None:
        peer = Peer(Role.GATEWAY, NodeId("UPEER"))
        super().__init__(peer, transport="test", path="test", dialled=False, now=asyncio.get_running_loop().time())
        self.written: list[Frame] = []
        self.reads = reads

    def _wake_writer(self) -> None:
        asyncio.get_running_loop().call_soon(self._write_now)

    def _write_now(self) -> None:
        if self.reads:
            for frames in self.take_writes():
                self.written += frames
            self.wrote_all()

    def _forget(self, why: errors.AimeshError) -> None:
        pass


class Service:
    role: ClassVar[Role] = Role.AUTH
    started = 0

    @rpc.serves(auth.login_user)
    async def login(self, request: auth.LoginUser, call: rpc.RpcCall) -> auth.LoginSession:
        self.started += 1
        await asyncio.Event().wait()
        raise AssertionError("never")

    @rpc.serves(node.read_health)
    async def health(self, request: node.ReadHealth, call: rpc.RpcCall) -> node.NodeHealth:
        return node.NodeHealth(ready=True, checks=(node.Check("x" * 1000, True),))


@asynccontextmanager
async def serving(link: Link) -> AsyncIterator[RpcConnection]:
    async with background() as tasks:
        dispatcher = rpc.Dispatcher(tasks, lambda *observed: None, lambda *bug: None)
        dispatcher.add(Service())
        yield RpcConnection(link, dispatcher)
        link.close(errors.LinkLost("the test is over"))


def opened_and_reset(count: int, first: int = 1) -> list[Frame]:
    pairs = ((Call(number, "auth.loginUser", 60_000, BODY), Cancel(number)) for number in range(first, first + 2 * count, 2))
    return [frame for pair in pairs for frame in pair]


async def _flooded() -> int:
    """Return how many calls were opened and reset until the link was closed."""
    link = OneSidedLink()
    sent = 0
    async with serving(link) as connection:
        # Stop the clock: on a busy machine a flood is slow, and some of it would be forgiven.
        now = connection._now()
        connection._now = lambda: now
        while link.closed is None and sent < 100_000:
            link.receive(opened_and_reset(100, 1 + 2 * sent), 0)
            sent += 100
            await asyncio.sleep(0)
        assert isinstance(link.closed, errors.ProtocolViolation)
        assert "opened and withdrawn" in link.closed.message
    return sent


async def test_a_hundred_thousand_opened_and_reset_calls_end_the_link_within_two_seconds() -> None:
    started = time.process_time()
    assert RESETS_AT_ONCE <= await _flooded() <= 2 * RESETS_AT_ONCE
    assert time.process_time() - started < 2
    tracemalloc.start()
    await _flooded()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 50_000_000


async def test_all_of_them_in_one_write_end_it_as_well() -> None:
    link = OneSidedLink()
    async with serving(link):
        link.receive(opened_and_reset(100_000), 0)
        assert isinstance(link.closed, errors.ProtocolViolation)


@pytest.mark.parametrize("calls_at_once", [256, wire.MAX_CALLS])
async def test_an_honest_peer_may_repeatedly_cancel_all_its_calls_at_once(calls_at_once: int) -> None:
    now = asyncio.get_running_loop().time()
    link = OneSidedLink()
    link.max_calls = calls_at_once
    async with serving(link) as connection:
        connection._now = lambda: now
        first = 1
        for _ in range(3):
            frames = opened_and_reset(calls_at_once, first)
            first += 2 * calls_at_once
            link.receive([frame for frame in frames if isinstance(frame, Call)], 0)
            await asyncio.sleep(0)
            link.receive([frame for frame in frames if isinstance(frame, Cancel)], 0)
            for _ in range(5):
                await asyncio.sleep(0)
            now += calls_at_once / RESETS_PER_SECOND
        assert link.closed is None
        assert sum(1 for frame in link.written if isinstance(frame, Error)) == 3 * calls_at_once


async def test_a_peer_that_calls_endlessly_and_reads_no_reply_is_disconnected() -> None:
    link = OneSidedLink(reads=False)
    async with serving(link):
        asked = 0
        async with asyncio.timeout(60):
            while link.closed is None:
                link.receive([Call(1 + 2 * (asked + number), "node.readHealth", 60_000, HEALTH) for number in range(200)], 0)
                asked += 200
                for _ in range(4):
                    await asyncio.sleep(0)
                assert link.unsent_bytes < 2 * MAX_UNREAD_BYTES
        assert isinstance(link.closed, errors.ProtocolViolation)
        assert "without reading the replies" in link.closed.message


async def test_so_is_a_peer_whose_calls_are_all_refused() -> None:
    link = OneSidedLink(reads=False)
    async with serving(link):
        asked = 0
        async with asyncio.timeout(60):
            while link.closed is None:
                link.receive([Call(1 + 2 * (asked + number), "auth.loginUser", 60_000, BODY) for number in range(1000)], 0)
                asked += 1000
                await asyncio.sleep(0)
                assert link.unsent_bytes < 2 * MAX_UNREAD_BYTES
        assert isinstance(link.closed, errors.ProtocolViolation)


async def test_a_peer_that_reads_is_answered_as_often_as_it_calls() -> None:
    link = OneSidedLink()
    async with serving(link):
        for asked in range(0, 10_000, 200):
            link.receive([Call(1 + 2 * (asked + number), "node.readHealth", 60_000, HEALTH) for number in range(200)], 0)
            for _ in range(4):
                await asyncio.sleep(0)
        assert link.closed is None
        assert sum(1 for frame in link.written if isinstance(frame, Reply)) == 10_000
        assert wire.VERSION == 1
