"""How two peers behind different NATs connect, how soon, and whether they report their path correctly."""

import os

import pytest

from tests.nat import dht
from tests.nat.dht import BOOTSTRAP, RELAY_ADDRESS
from tests.nat.peer import peer
from tests.nat.topology import Internet, Nat

pytestmark = pytest.mark.usefixtures("nodes")

DIRECT_SECONDS, RELAYED_SECONDS = 2.0, 3.0
#: A node makes a random punch at most once in 20 s.
UPGRADE_SECONDS = 30.0


async def test_two_homes_meet_without_anybody_between_them(net: Internet) -> None:
    box, cafe = await net.house("box", Nat.PORT_PRESERVING), await net.house("cafe", Nat.PORT_PRESERVING)
    topic = os.urandom(32)
    async with peer(box, topic=topic, bootstrap=BOOTSTRAP) as worker, peer(cafe, topic=topic, bootstrap=BOOTSTRAP) as client:
        joining = await client.hear("joining", seconds=1)
        alive = await client.hear("alive", seconds=10)
        other = await worker.hear("alive", seconds=5)
    assert alive.at - joining.at < DIRECT_SECONDS
    assert (alive.path, other.path) == ("punched", "punched")
    assert alive.remote.startswith(box.public_address)


async def test_a_home_reaches_a_public_machine_directly(net: Internet) -> None:
    cafe = await net.house("cafe", Nat.PORT_PRESERVING)
    topic = os.urandom(32)
    async with peer(net.public, topic=topic, bootstrap=BOOTSTRAP) as gateway, peer(cafe, topic=topic, bootstrap=BOOTSTRAP) as client:
        joining = await client.hear("joining", seconds=1)
        alive = await client.hear("alive", seconds=10)
        await gateway.hear("alive", seconds=5)
    assert alive.at - joining.at < DIRECT_SECONDS
    assert alive.path in {"direct", "punched"}


@pytest.mark.parametrize("both_know_it", [True, False], ids=["both know the relay", "one knows the relay"])
async def test_two_symmetric_nats_meet_through_the_relay_and_say_so(net: Internet, *, both_know_it: bool) -> None:
    box, cafe = await net.house("box", Nat.SYMMETRIC), await net.house("cafe", Nat.SYMMETRIC)
    topic = os.urandom(32)
    async with dht.relay(net.public) as key:
        theirs = [key] if both_know_it else []
        async with (
            peer(box, topic=topic, bootstrap=BOOTSTRAP, relays=[key]) as worker,
            peer(cafe, topic=topic, bootstrap=BOOTSTRAP, relays=theirs) as client,
        ):
            joining = await client.hear("joining", seconds=1)
            alive = await client.hear("alive", seconds=15)
            other = await worker.hear("alive", seconds=5)
    assert alive.at - joining.at < RELAYED_SECONDS
    assert (alive.path, other.path) == ("relayed", "relayed")
    assert alive.remote.startswith(RELAY_ADDRESS)


async def test_two_symmetric_nats_without_a_relay_are_told_why_not(net: Internet) -> None:
    box, cafe = await net.house("box", Nat.SYMMETRIC), await net.house("cafe", Nat.SYMMETRIC)
    topic = os.urandom(32)
    async with peer(box, topic=topic, bootstrap=BOOTSTRAP) as worker, peer(cafe, topic=topic, bootstrap=BOOTSTRAP) as client:
        failed = await client.hear("failed", seconds=15)
        assert failed.code == "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"
        assert not client.heard("opened")
        assert not worker.heard("opened")


async def test_what_began_through_the_relay_goes_on_without_it_where_one_nat_can_be_punched(net: Internet) -> None:
    box, cafe = await net.house("box", Nat.PORT_PRESERVING), await net.house("cafe", Nat.SYMMETRIC)
    topic = os.urandom(32)
    async with (
        dht.relay(net.public) as key,
        peer(box, topic=topic, bootstrap=BOOTSTRAP) as worker,
        peer(cafe, topic=topic, bootstrap=BOOTSTRAP, relays=[key]) as client,
    ):
        joining = await client.hear("joining", seconds=1)
        alive = await client.hear("alive", seconds=15)
        assert alive.at - joining.at < RELAYED_SECONDS
        # The punch may have been faster than the relay.
        changed = alive if alive.path == "punched" else await client.hear("path", seconds=UPGRADE_SECONDS)
        for side in (client, worker):
            pulse = await side.hear("pulse", since=changed.at + 1, seconds=5)
            assert pulse.path == "punched"
            assert not side.heard("closed")
