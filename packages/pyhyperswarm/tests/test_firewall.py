"""Who may connect, and whose access was removed."""

import asyncio
import secrets

import swarms
from pyhyperswarm import Banned, dht
from swarms import EventRecorder, local_swarm, meet, pair, public_key, take

SEED = secrets.token_bytes(32)
KEY = public_key(SEED)


async def test_a_denied_node_is_not_admitted_until_it_is_allowed() -> None:
    topic, told = swarms.new_topic(), EventRecorder()
    nodes = dht.shared()
    async with local_swarm(nodes, denied=frozenset({KEY}), on_event=told) as host, local_swarm(nodes, seed=SEED) as guest:
        await host.join(topic)
        await host.flush()
        await guest.join(topic)
        assert (await told.of(Banned)).key == KEY
        assert host.connections == ()
        await host.deny(frozenset())
        assert (await take(host)).key == KEY


async def test_a_denied_node_is_disconnected_immediately_and_others_stay() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        await one.deny(frozenset({other.public_key}))
        async with asyncio.timeout(swarms.PATIENCE_SECONDS):
            await here.wait_closed()
            await there.wait_closed()
        assert here.closed == "not allowed"
        assert (await one.stats()).lost == 0


async def test_the_firewall_still_applies_after_a_sidecar_restart() -> None:
    topic = swarms.new_topic()
    told = EventRecorder()
    nodes = dht.shared()
    async with local_swarm(nodes, on_event=told) as host, local_swarm(nodes, seed=SEED) as guest:
        await host.deny(frozenset({KEY}))
        await swarms.kill_sidecar(host)
        await host.join(topic)
        await host.flush()
        await guest.join(topic)
        assert (await told.of(Banned)).key == KEY
        assert host.connections == ()
