"""A town on a fresh database."""

from collections.abc import AsyncIterator

import pytest

from tests.services.auth.organizations.seeded_database import Town, opened_town


@pytest.fixture
async def town(postgres_url: str) -> AsyncIterator[Town]:
    async with opened_town(postgres_url) as town:
        yield town
