"""A file that a person stores. See ``tests.integration.test_erasure_whole``."""

import asyncpg
import httpx

from tests.people import Person


async def store(http: httpx.AsyncClient) -> int:
    """Return how many requests run a model."""
    stored = await http.post("/v1/files", files={"file": ("words.txt", b"words")}, data={"purpose": "user_data"})
    assert stored.status_code == 200
    return 0


async def count(database: asyncpg.Connection, person: Person) -> int:
    """Return how many there are that can be read."""
    query = "SELECT count(*) FROM files WHERE tenant_id = $1 AND purpose = 'user_data' AND state = 'ready'"
    found: int = await database.fetchval(query, person.id)
    return found
