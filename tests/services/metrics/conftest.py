"""Databases with the tables of the metrics service, and replicas that share one."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from services.metrics import leader_state
from services.metrics.leader_state import Database
from tests.services.metrics.replicas import Mesh, Replicas


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    return "metrics"


@pytest.fixture
async def database(postgres_url: str) -> AsyncIterator[Database]:
    async with leader_state.open_database(postgres_url, migrate=True) as opened:
        yield opened


@pytest.fixture
def mesh() -> Mesh:
    return Mesh()


@pytest.fixture
async def replicas(mesh: Mesh, database: Database, postgres_url: str) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        yield Replicas(mesh, postgres_url, database, stack)
