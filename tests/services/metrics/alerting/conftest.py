"""Fixtures for tests of alerts on PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services.metrics.alerting.alert_store import AlertStore
from services.metrics.alerting.rules import all_rules
from tests.services.metrics.alerting.alert_replicas import Mesh, Replicas


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[AlertStore]:
    async with AlertStore.open(postgres_url, all_rules.ALL) as opened:
        yield opened


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
async def replicas(mesh: Mesh, store: AlertStore, postgres_url: str) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(mesh, postgres_url, store, stack)
