"""A job that a person orders. See ``tests.integration.test_erasure_whole``."""

import asyncpg
import httpx

from tests.integration import asking
from tests.people import Person


async def store(http: httpx.AsyncClient) -> int:
    """Return how many requests run a model."""
    job = {"endpoint": "/v1/responses", "body": {"model": asking.ECHO, "input": "some words"}}
    assert (await http.post("/api/jobs", json=job)).status_code == 202
    return 1


async def count(database: asyncpg.Connection, person: Person) -> int:
    found: int = await database.fetchval("SELECT count(*) FROM jobs WHERE tenant_id = $1", person.id)
    return found
