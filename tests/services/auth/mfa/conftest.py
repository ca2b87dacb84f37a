"""auth with second factors, needed by administrators."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from tests.services.auth.mfa.equipment import Desk
from tests.services.auth.surroundings import Surroundings


@pytest.fixture
def settings(settings: AuthSettings) -> AuthSettings:
    return msgspec.structs.replace(settings, admin_mfa=True)


@pytest.fixture
async def desk(settings: AuthSettings) -> AsyncIterator[Desk]:
    world = Surroundings()
    async with AuthService.open(settings, world.as_node()) as service:
        world.service = service
        yield Desk(world)


@pytest.fixture
async def replica(settings: AuthSettings, desk: Desk) -> AsyncIterator[Desk]:
    """A second auth on the same stores, at the same moment."""
    world = Surroundings()
    async with AuthService.open(settings, world.as_node()) as service:
        world.service = service
        yield Desk(world, desk.clock, desk.trail)
