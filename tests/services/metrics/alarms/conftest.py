"""Fixtures of the tests of alerts on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services.metrics.alarms.store import Store
from services.metrics.alerts import rules
from tests.services.metrics.alarms.alarm_replicas import Mesh, Replicas


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with Store.open(postgres_url, rules.ALL) as opened:
        yield opened


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
async def replicas(mesh: Mesh, store: Store, postgres_url: str) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(mesh, postgres_url, store, stack)


# --- one after the other ------------------------------------------------------------------------------------------------
