"""Faults between two homes: how soon both peers notice, and how soon they are connected again."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import pytest

from tests.nat import dht
from tests.nat.dht import BOOTSTRAP, Companion
from tests.nat.peer import Watched, peer
from tests.nat.topology import House, Internet, Nat

pytestmark = pytest.mark.usefixtures("nodes")

#: A peer is gone after 3 s of silence; plus the time to notice that.
SILENCE_SECONDS = 3.5
BACK_SECONDS = 5.0
#: For a change of address without an outage: the silence has to be noticed first.
MOVED_SECONDS = 8.0
OUTAGE_SECONDS = 10.0
DRAWN_ADDRESS = "5.5.5.77"


@dataclass(slots=True)
class Pair:
    """Two homes whose peers are connected to each other."""

    box: House
    cafe: House
    worker: Watched
    client: Watched
    topic: bytes
    worker_seed: bytes


@asynccontextmanager
async def pair(net: Internet) -> AsyncIterator[Pair]:
    box, cafe = await net.house("box", Nat.PORT_PRESERVING), await net.house("cafe", Nat.PORT_PRESERVING)
    topic, seed = os.urandom(32), os.urandom(32)
    async with peer(box, topic=topic, bootstrap=BOOTSTRAP, seed=seed) as worker, peer(cafe, topic=topic, bootstrap=BOOTSTRAP) as client:
        await worker.hear("alive", seconds=10)
        await client.hear("alive", seconds=10)
        yield Pair(box, cafe, worker, client, topic, seed)


@pytest.mark.parametrize("new_address", [None, DRAWN_ADDRESS], ids=["same address", "new address"])
async def test_after_an_outage_they_have_each_other_again(net: Internet, new_address: str | None) -> None:
    async with pair(net) as two:
        await two.box.link_down()
        down_at = monotonic()
        await asyncio.sleep(OUTAGE_SECONDS)  # the fault itself
        if new_address is not None:
            await two.box.change_public_address(new_address)
        await two.box.link_up()
        up_at = monotonic()
        for side in (two.worker, two.client):
            closed = await side.hear("closed", since=down_at, seconds=1)
            assert closed.at - down_at < SILENCE_SECONDS
            alive = await side.hear("alive", since=up_at, seconds=30)
            assert alive.at - up_at < BACK_SECONDS


async def test_another_public_address_without_an_outage(net: Internet) -> None:
    async with pair(net) as two:
        changed_at = monotonic()
        await two.box.change_public_address(DRAWN_ADDRESS)
        for side in (two.worker, two.client):
            alive = await side.hear("alive", since=changed_at, seconds=30)
            assert alive.at - changed_at < MOVED_SECONDS


async def test_silence_is_death_within_three_seconds_and_a_half(net: Internet) -> None:
    async with pair(net) as two:
        dropped_at = monotonic()
        await two.box.drop(two.cafe.public_address)
        for side in (two.worker, two.client):
            closed = await side.hear("closed", since=dropped_at, seconds=10)
            assert closed.at - dropped_at < SILENCE_SECONDS
        await two.box.pass_again(two.cafe.public_address)
        passing_at = monotonic()
        for side in (two.worker, two.client):
            alive = await side.hear("alive", since=passing_at, seconds=30)
            assert alive.at - passing_at < BACK_SECONDS


async def test_a_killed_peer_that_starts_again_is_back_at_once(net: Internet) -> None:
    async with pair(net) as two:
        killed_at = two.worker.kill()
        async with peer(two.box, topic=two.topic, bootstrap=BOOTSTRAP, seed=two.worker_seed) as again:
            joining = await again.hear("joining", seconds=1)
            for side in (again, two.client):
                alive = await side.hear("alive", since=killed_at, seconds=30)
                assert alive.at - joining.at < BACK_SECONDS


async def test_connections_outlive_the_dht(net: Internet, nodes: Companion) -> None:
    async with pair(net) as two:
        await nodes.kill()
        killed_at = monotonic()
        # Longer than the silence that ends a connection.
        await two.client.hear("pulse", since=killed_at + 2 * SILENCE_SECONDS, seconds=2 * SILENCE_SECONDS + 3)
        assert not two.client.heard("closed")
        assert not two.worker.heard("closed")


async def test_a_dht_that_forgot_everything_learns_it_again(net: Internet, nodes: Companion) -> None:
    async with pair(net) as two:
        await nodes.kill()
        late = await net.house("late", Nat.PORT_PRESERVING)
        again = await dht.start_dht(net.public)
        try:
            async with peer(late, topic=two.topic, bootstrap=BOOTSTRAP) as newcomer:
                joining = await newcomer.hear("joining", seconds=1)
                alive = await newcomer.hear("alive", seconds=30)
                assert alive.at - joining.at < BACK_SECONDS
        finally:
            await again.kill()
