"""Fixtures for the account tests."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.settings import AuthSettings
from tests.services.auth.accounts.surroundings import ApiClient, opened_accounts


@pytest.fixture
async def api_client(settings: AuthSettings) -> AsyncIterator[ApiClient]:
    async with opened_accounts(msgspec.structs.replace(settings, public_url="https://ai.example.com")) as opened:
        yield opened
