"""One stack for the browser tests, with the echo model for speed; the new user's stack has everything that `make up` starts."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import people, stacks
from tests.acceptance.chromium import Browser
from tests.acceptance.watching import Watch
from tests.people import ApiClient
from tests.stacks import RunningStack
from tests.testnet import free_port

#: The port of the login provider. Only the test that signs in there starts the provider.
PROVIDER_PORT = free_port()
#: Slow enough to see an answer grow, and to stop it.
ECHO_TOKEN_MS = "20"

_shared = stacks.OfFolders(
    (Path(__file__).parent,),
    INFERENCE_BACKEND="echo",
    # Saves six processes; tests/integration covers the DHT.
    HYPERSWARM="off",
    ECHO_TOKEN_MS=ECHO_TOKEN_MS,
    OIDC_ISSUER=f"http://127.0.0.1:{PROVIDER_PORT}",
    OIDC_CLIENT_ID="aimesh",
    OIDC_CLIENT_SECRET="s" * 40,
    OIDC_NAME="Example",
)


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


# Runs after the fixtures, because an open page logs errors when its server stops.
@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)


@pytest.fixture
async def watch(stack: RunningStack, chrome: Browser) -> AsyncIterator[Watch]:
    """Opens pages, and fails the test if they have problems."""
    watch = Watch(chrome, stack.url("web"))
    yield watch
    await watch.check()


@pytest.fixture
def provider_port() -> int:
    return PROVIDER_PORT


@pytest.fixture
async def api_client(stack: RunningStack) -> AsyncIterator[ApiClient]:
    async with people.api_client(stack) as opened:
        yield opened
