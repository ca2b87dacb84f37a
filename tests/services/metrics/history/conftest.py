from collections.abc import AsyncIterator

import pytest

from services.metrics.history.store import Store


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with Store.open(postgres_url) as opened:
        yield opened
