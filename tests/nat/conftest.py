"""A made-up Internet for each test, if the machine can have one."""

from collections.abc import AsyncIterator

import pytest

from tests import capabilities
from tests.nat import dht, topology
from tests.nat.dht import Companion
from tests.nat.topology import Internet


@pytest.fixture
async def net() -> AsyncIterator[Internet]:
    """A made-up Internet without any sites."""
    capabilities.require("nat")
    async with topology.internet() as made:
        yield made


@pytest.fixture
async def nodes(net: Internet) -> AsyncIterator[Companion]:
    """The DHT of that Internet."""
    async with dht.dht(net.public) as running:
        yield running
