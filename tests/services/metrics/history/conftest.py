from collections.abc import AsyncIterator

import pytest

from services.metrics.history.history_store import HistoryStore


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[HistoryStore]:
    async with HistoryStore.open(postgres_url) as opened:
        yield opened
