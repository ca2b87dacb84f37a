"""Fixtures for logins with a provider: a real Valkey, and Oidc with its own clock."""

import contextlib
from collections.abc import AsyncIterator

import pytest

from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.oidc_login import OidcLogins, PendingLogins
from services.auth.oidc.provider import Provider
from shared.stores.cache import Cache
from tests.services.auth.oidc.scripted_provider import ScriptedProvider, scripted_provider
from tests.services.auth.oidc.surroundings import Clock, OpenOidc


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    async with Cache.open(valkey_url) as opened:
        yield opened


@pytest.fixture
def open_oidc(cache: Cache, clock: Clock) -> OpenOidc:
    @contextlib.asynccontextmanager
    async def open_it(registration: ClientRegistration) -> AsyncIterator[OidcLogins]:
        async with Provider.open(registration, clock) as provider:
            yield OidcLogins(registration, provider, PendingLogins(cache), clock=clock)

    return open_it


@pytest.fixture
async def scripted() -> AsyncIterator[ScriptedProvider]:
    async with scripted_provider() as provider:
        yield provider
