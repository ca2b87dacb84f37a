"""Who may connect, and who may not any more."""

import asyncio
import secrets

import pytest

from shared.transports.hyperswarm import Banned, Firewall, PeerFailed, public_key
from tests import dht
from tests.shared.transports.hyperswarm import swarms
from tests.shared.transports.hyperswarm.swarms import EventRecorder, local_swarm, meet, pair, take

SEED = secrets.token_bytes(32)
KEY = public_key(SEED)


@pytest.mark.parametrize(
    "firewall",
    [pytest.param(Firewall(denied=frozenset({KEY})), id="denied"), pytest.param(Firewall(allowed=frozenset()), id="not allowed")],
)
async def test_a_refused_node_is_not_admitted_until_it_is_allowed(firewall: Firewall) -> None:
    topic, told = swarms.new_topic(), EventRecorder()
    nodes = dht.shared()
    async with local_swarm(nodes, firewall=firewall, on_event=told) as host, local_swarm(nodes, seed=SEED) as guest:
        await host.join(topic)
        await host.flush()
        await guest.join(topic)
        assert (await told.of(Banned)).key == KEY
        assert host.connections == ()
        await host.set_firewall(Firewall())
        assert (await take(host)).key == KEY


async def test_a_peer_on_no_topic_is_told_so() -> None:
    told, key = EventRecorder(), public_key(secrets.token_bytes(32))
    async with local_swarm(dht.shared(), on_event=told) as swarm:
        await swarm.join_peer(key)
        failure = await told.of(PeerFailed)
        assert (failure.key, failure.topics, failure.code) == (key, (), "PEER_NOT_FOUND")


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        (Firewall(), Firewall(), False),
        (Firewall(), Firewall(denied=frozenset({KEY})), False),
        (Firewall(denied=frozenset({KEY})), Firewall(), True),
        (Firewall(allowed=frozenset()), Firewall(), True),
        (Firewall(allowed=frozenset()), Firewall(allowed=frozenset({KEY})), True),
        (Firewall(), Firewall(allowed=frozenset({KEY})), False),
        (Firewall(allowed=frozenset({KEY})), Firewall(allowed=frozenset({KEY})), False),
    ],
)
def test_whether_an_unknown_node_is_admitted(before: Firewall, after: Firewall, more: bool) -> None:
    assert after.admits_more_than(before) is more


async def test_a_denied_node_is_disconnected_immediately_and_others_stay() -> None:
    async with pair() as (one, other):
        here, there = await meet(one, other)
        await one.set_firewall(Firewall(denied=frozenset({other.public_key})))
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
        await host.set_firewall(Firewall(allowed=frozenset({bytes(32)})))
        await swarms.kill_sidecar(host)
        await host.join(topic)
        await host.flush()
        await guest.join(topic)
        assert (await told.of(Banned)).key == KEY
        assert host.connections == ()
