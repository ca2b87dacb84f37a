"""Fixtures for the privacy tests, with the real sessions and the real audit log."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.settings import AuthSettings
from tests.services.auth.accounts.surroundings import opened_accounts
from tests.services.auth.privacy.surroundings import PrivacyDesk


@pytest.fixture
async def api_client(settings: AuthSettings) -> AsyncIterator[PrivacyDesk]:
    own = msgspec.structs.replace(settings, public_url="https://ai.example.com", erasure_days=30)
    async with opened_accounts(own) as opened:
        yield PrivacyDesk(opened)
