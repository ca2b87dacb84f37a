"""A desk for one's own account."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.settings import AuthSettings
from tests.services.auth.accounts.surroundings import Desk, opened_desk


@pytest.fixture
async def desk(settings: AuthSettings) -> AsyncIterator[Desk]:
    async with opened_desk(msgspec.structs.replace(settings, public_url="https://ai.example.com")) as opened:
        yield opened
