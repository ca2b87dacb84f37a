"""All tests of a file run in one event loop, which controls the Chromium of the test process; every page has its own profile."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.acceptance.chromium import Browser, Chromium


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chrome(chromium_process: Chromium) -> AsyncIterator[Browser]:
    async with chromium_process.control() as browser:
        yield browser
