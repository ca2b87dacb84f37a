"""Real swarms on loopback: connecting, messages, and closing."""

import asyncio
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path as FilePath

import pytest
import swarms
import uvloop
from pyhyperswarm import ConnectionClosed, Path, Swarm, dht
from swarms import local_swarm, meet, pair, public_key, take


async def test_two_swarms_find_each_other_by_topic() -> None:
    topic = swarms.new_topic()
    async with pair() as (one, other):
        here, there = await meet(one, other, topic)
        assert (here.key, there.key) == (other.public_key, one.public_key)
        assert here.channel == there.channel
        assert len(here.channel) >= 32
        assert here.initiator != there.initiator
        assert {here.path, there.path} == {Path.DIRECT}
        # The side that found the other by lookup knows the topic.
        assert topic in (here.topics or there.topics)
        assert (await one.stats()).connections == 1
        assert (await one.stats()).dht.bootstrapped


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_messages_of_every_size_arrive_whole_and_in_order(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def talk() -> None:
        async with pair() as (one, other):
            here, there = await meet(one, other)
            there.on_message = there.send
            sizes = [0, 1, 100, 65_535, 65_536, 65_537, 300_000, 1024 * 1024, 3]
            sent = [os.urandom(size) for size in sizes]
            for message in sent:
                here.send(message)
            async with asyncio.timeout(swarms.PATIENCE_SECONDS):
                assert [await here.read() for _ in sent] == sent

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(talk())


async def test_closing_notifies_the_peer_after_delivering_earlier_messages() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        for number in range(200):
            here.send(b"%d" % number)
        here.close("enough")
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            assert [int(message) async for message in there] == list(range(200))
            await there.wait_closed()
        assert (here.closed, there.closed) == ("enough", "")


async def test_aborting_notifies_the_peer_immediately() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        here.close("go away", abort=True)
        async with asyncio.timeout(30):
            await there.wait_closed()
        with pytest.raises(ConnectionClosed):
            there.send(b"x")


async def test_a_closed_swarm_notifies_its_peers_and_ends_its_iteration() -> None:
    nodes = dht.shared()
    async with local_swarm(nodes) as one:
        async with local_swarm(nodes) as other:
            here, _ = await meet(one, other)
            pid = (await other.stats()).pid
        assert [connection async for connection in other] == []
        assert not swarms.is_running(pid)
        async with asyncio.timeout(30):
            await here.wait_closed()


async def test_a_peer_that_never_reads_blocks_the_sender_without_using_memory() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        before = [(await swarm.stats()).rss_bytes for swarm in (one, other)]
        sent = 0
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            while not here.is_full:
                here.send(bytes(16_384))
                sent += 16_384
                await asyncio.sleep(0)
            # Once a later question is answered, everything in flight has arrived.
            there.send(b"?")
            await here.read()
        assert sent <= 2 * 1024 * 1024
        after = [(await swarm.stats()).rss_bytes for swarm in (one, other)]
        grown = [now - then for now, then in zip(after, before, strict=True)]
        assert max(grown) <= 16 * 1024 * 1024, grown
        # The sender continues as soon as the peer reads.
        there.on_message = lambda message: None
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await here.drained()


async def test_an_unauthenticated_peer_may_send_little_until_the_window_is_opened() -> None:
    async with pair() as (one, other):
        topic = swarms.new_topic()
        await one.join(topic)
        await one.flush()
        await other.join(topic)
        here, there = await take(one), await take(other)
        got: list[bytes] = []
        there.on_message = got.append
        for _ in range(50):
            here.send(bytes(1000))
        there.send(b"?")
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await here.read()
        assert len(got) * 1000 <= 8192
        there.open_window()
        await swarms.until(lambda: len(got) == 50)


async def test_the_key_is_derived_from_the_seed_and_stays() -> None:
    seed = secrets.token_bytes(32)
    for _ in range(2):
        async with local_swarm(dht.shared(), seed=seed) as swarm:
            assert swarm.public_key == public_key(seed)


async def test_a_connection_that_nobody_accepts_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhyperswarm.connection_table.UNTAKEN_SECONDS", 1.0)
    async with pair() as (one, other):
        topic = swarms.new_topic()
        await one.join(topic)
        await one.flush()
        await other.join(topic)
        there = await take(other)
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await there.wait_closed()


async def test_excess_pending_connections_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else the first ends, too, on a machine that is slow to open the second.
    monkeypatch.setattr("pyhyperswarm.connection_table.UNTAKEN_SECONDS", swarms.PATIENCE_SECONDS)
    nodes = dht.shared()
    async with local_swarm(nodes, max_pending=1) as host:
        topic = swarms.new_topic()
        await host.join(topic)
        await host.flush()
        async with local_swarm(nodes) as one, local_swarm(nodes) as other:
            await one.join(topic, server=False)
            first = await take(one)
            await other.join(topic, server=False)
            second = await take(other)
            async with asyncio.timeout(swarms.PATIENCE_SECONDS):
                await second.wait_closed()
            assert first.closed is None


async def test_a_failing_body_keeps_its_error_and_leaves_no_process() -> None:
    pid = 0
    with pytest.raises(KeyError):
        async with local_swarm(dht.shared()) as swarm:
            pid = (await swarm.stats()).pid
            raise KeyError("mine")
    assert not swarms.is_running(pid)


async def test_a_swarm_canceled_while_opening_leaves_no_process() -> None:
    before = children()

    async def open_one() -> None:
        async with Swarm(bootstrap=[], host=dht.HOST):
            await asyncio.Event().wait()

    for turns in range(0, 60, 6):
        task = asyncio.ensure_future(open_one())
        for _ in range(turns):
            await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await swarms.until(lambda: children() <= before)


def children() -> set[str]:
    found: set[str] = set()
    for task in FilePath("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # the thread may have ended meanwhile
            found |= set((task / "children").read_text().split())
    return found


@pytest.mark.parametrize("topic", [b"", b"short", bytes(33)])
async def test_a_topic_has_32_bytes(topic: bytes) -> None:
    swarm = Swarm()
    with pytest.raises(ValueError, match="32 bytes"):
        await swarm.join(topic)


async def test_a_topic_may_be_rejoined_with_other_options() -> None:
    async with pair() as (one, other):
        topic = swarms.new_topic()
        await one.join(topic, server=False)
        await other.join(topic, server=False)
        await one.flush()
        await other.flush()
        assert one.connections == ()
        await one.join(topic, client=False)
        await one.flush()
        await other.refresh(topic)
        connection = await take(other, of=one)
        await one.leave(topic)
        await other.leave(topic)
        connection.close()
        await one.join(topic)
        await one.flush()
        await other.join(topic)
        await take(other, of=one)
