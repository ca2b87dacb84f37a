"""The handlers of API keys and organizations on a fresh database."""

from collections.abc import AsyncIterator

import pytest

from tests.services.auth.organizations.seeded_database import SeededDb, opened_organizations


@pytest.fixture
async def seeded_db(postgres_url: str) -> AsyncIterator[SeededDb]:
    async with opened_organizations(postgres_url) as seeded_db:
        yield seeded_db
