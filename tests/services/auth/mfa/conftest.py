"""auth with second factors, which administrators must have."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from tests.services.auth.mfa.equipment import ApiClient
from tests.services.auth.surroundings import Surroundings


@pytest.fixture
def settings(settings: AuthSettings) -> AuthSettings:
    return msgspec.structs.replace(settings, admin_mfa=True)


@pytest.fixture
async def api_client(settings: AuthSettings) -> AsyncIterator[ApiClient]:
    world = Surroundings()
    async with AuthService.open(settings, world.as_node()) as service:
        world.service = service
        yield ApiClient(world)


@pytest.fixture
async def replica(settings: AuthSettings, api_client: ApiClient) -> AsyncIterator[ApiClient]:
    """A second replica of auth, with the same stores and clock."""
    world = Surroundings()
    async with AuthService.open(settings, world.as_node()) as service:
        world.service = service
        yield ApiClient(world, api_client.clock, api_client.trail)
