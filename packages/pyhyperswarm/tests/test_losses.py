"""Recovery after sidecars, parents, the DHT or the network fail, and clean ends."""

import asyncio
import os
import secrets
import signal
import sys
import time
from contextlib import AsyncExitStack

import pytest
import swarms
from pyhyperswarm import PeerConnection, SidecarDied, SidecarLost, SidecarRestarted, Swarm, dht
from pyhyperswarm import swarm as swarm_module
from swarms import EventRecorder, local_swarm, meet, pair, take


async def sidecar_of(swarm: Swarm) -> int:
    return (await swarm.stats()).pid


async def echo(connection: PeerConnection, other_end: PeerConnection) -> None:
    connection.open_window()
    other_end.open_window()
    other_end.send(b"hello")
    async with asyncio.timeout(swarms.PATIENCE_SECONDS):
        assert await connection.read() == b"hello"


async def test_a_killed_sidecar_is_replaced_and_peers_reconnect() -> None:
    async with pair() as (one, other):
        told = EventRecorder()
        one.on_event = told
        here, there = await meet(one, other)
        key = one.public_key
        os.kill(await sidecar_of(one), signal.SIGKILL)
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await here.wait_closed()
        assert here.closed == "sidecar lost"
        again_there, again_here = await take(other), await take(one)
        await echo(again_here, again_there)
        assert there.closed is not None
        assert one.public_key == key
        assert (await one.stats()).restarts == 1
        await told.of(SidecarDied)
        assert await told.of(SidecarRestarted) == SidecarRestarted(1)


async def test_a_hanging_sidecar_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_module, "HANGS_SECONDS", 1.0)
    async with local_swarm(dht.shared()) as swarm:
        told = EventRecorder()
        swarm.on_event = told
        os.kill(await sidecar_of(swarm), signal.SIGSTOP)
        assert await told.of(SidecarRestarted) == SidecarRestarted(1)
        assert (await swarm.stats()).restarts == 1


@pytest.mark.nightly("long")
async def test_a_sidecar_that_dies_repeatedly_is_replaced_each_time() -> None:
    async with local_swarm(dht.shared()) as swarm:
        told = EventRecorder()
        swarm.on_event = told
        for count in (1, 2):
            os.kill(await sidecar_of(swarm), signal.SIGKILL)
            await told.of(SidecarRestarted, lambda event: event.restarts == count)  # noqa: B023 - called at once


async def test_without_a_sidecar_queries_fail_and_settings_are_kept() -> None:
    topic = swarms.new_topic()
    async with pair() as (one, other):
        told = EventRecorder()
        one.on_event = told
        os.kill(await sidecar_of(one), signal.SIGKILL)
        await told.of(SidecarDied)
        with pytest.raises(SidecarLost):
            await one.stats()
        await one.join(topic)
        await one.flush()
        await other.join(topic)
        assert (await take(one)).key == other.public_key


async def test_a_query_to_a_dying_sidecar_fails() -> None:
    async with local_swarm(dht.shared()) as swarm:
        pid = await sidecar_of(swarm)
        os.kill(pid, signal.SIGSTOP)
        asking = asyncio.ensure_future(swarm.stats())
        await asyncio.sleep(0)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(SidecarLost):
            await asking


async def test_peers_notice_a_hanging_sidecar_and_it_reconnects() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        pid = await sidecar_of(one)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(swarms.PATIENCE_SECONDS):
                await there.wait_closed()
        finally:
            os.kill(pid, signal.SIGCONT)
        again_there = await take(other, of=one)
        again_here = await take(one, of=other)
        assert here.closed is not None
        await echo(again_here, again_there)


PARENT = """
import asyncio, sys
from pyhyperswarm import PeerAddress, Swarm
async def main():
    async with Swarm(bootstrap=[PeerAddress.parse(each) for each in sys.argv[1].split(",")], host="127.0.0.1") as swarm:
        await swarm.join(bytes.fromhex(sys.argv[2]))
        await swarm.flush()
        print((await swarm.stats()).pid, flush=True)
        async for connection in swarm:
            connection.open_window()
asyncio.run(main())
"""


async def test_a_sidecar_does_not_outlive_its_parent_and_peers_notice() -> None:
    topic = secrets.token_bytes(32)
    nodes = dht.shared()
    async with local_swarm(nodes) as swarm:
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, ",".join(map(str, nodes)), topic.hex(), stdout=asyncio.subprocess.PIPE, env=swarms.VARIABLES
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        await swarm.join(topic)
        connection = await take(swarm)
        parent.kill()
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await connection.wait_closed()
        await swarms.until(lambda: not swarms.is_running(pid))
        await parent.wait()


async def test_signals_to_the_process_group_do_not_reach_the_sidecar() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(await sidecar_of(one), number)
        await echo(here, there)
        assert (await one.stats()).restarts == 0


def compute(seconds: float) -> None:
    stop_at = time.monotonic() + seconds
    while time.monotonic() < stop_at:
        time.sleep(0.05)


async def test_a_blocked_event_loop_keeps_its_connections() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        compute(seconds=3.5)
        await echo(here, there)


@pytest.mark.parametrize("away_seconds", [0.0, pytest.param(4.0, marks=pytest.mark.nightly("long"))])
async def test_a_restarted_dht_is_told_the_announcements_again(away_seconds: float) -> None:
    """Although it is back before any node notices, and no node is missing."""
    ports, topic = dht.free_ports(3), swarms.new_topic()
    async with AsyncExitStack() as stack:
        async with dht.dht(ports=ports) as nodes:
            one, other = [await stack.enter_async_context(local_swarm(nodes)) for _ in range(2)]
            await one.join(topic, server=True, client=False)
            await other.join(topic, server=False, client=True)
            await asyncio.gather(take(one, of=other), take(other, of=one))
        # The library notices an outage of 4 s; it then announces the key again, but not the topic.
        away_until = time.monotonic() + away_seconds
        await swarms.until(lambda: time.monotonic() >= away_until)
        async with dht.dht(ports=ports) as nodes, local_swarm(nodes) as late:
            await late.join(topic, server=False, client=True)
            await take(late, of=one)


async def test_the_dht_may_disappear_and_return() -> None:
    ports = dht.free_ports(3)
    async with dht.dht(ports=ports) as nodes:
        swarms_open = (local_swarm(nodes), local_swarm(nodes))
        one, other = [await swarm.__aenter__() for swarm in swarms_open]
    try:
        topic = swarms.new_topic()
        await one.join(topic)
        await other.join(topic)
        async with dht.dht(ports=ports):
            here, there = await take(one, of=other), await take(other, of=one)
            await echo(here, there)
    finally:
        for swarm in swarms_open:
            await swarm.__aexit__(None, None, None)
