"""One Chromium for all tests of a file; every page has its own profile."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.acceptance import chromium
from tests.acceptance.chromium import Browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chrome() -> AsyncIterator[Browser]:
    async with chromium.launch() as running:
        yield running
