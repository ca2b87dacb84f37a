"""One stack for all tests of this folder: started by the first test that needs it, stopped before the tests of any other folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.types import Tier
from tests import people, stacks
from tests.people import ApiClient, Person
from tests.stacks import RunningStack

#: So that an answer of some hundred words is long enough to be cut off in its middle.
ECHO_TOKEN_MS = "5"
#: The limits of an hour stay; a minute's would slow the tests down.
WITHIN_A_MINUTE = "requests_per_minute=unlimited,concurrency=unlimited"

_shared = stacks.OfFolder(Path(__file__).parent, AIMESH_ECHO="1", ECHO_TOKEN_MS=ECHO_TOKEN_MS, TIER_PRO=WITHIN_A_MINUTE)


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)


@pytest.fixture
async def api_client(stack: RunningStack) -> AsyncIterator[ApiClient]:
    async with people.api_client(stack) as opened:
        yield opened


@pytest.fixture
async def ann(api_client: ApiClient) -> Person:
    """A new user, with enough quota for every test's requests."""
    return await api_client.register("ann", Tier.PRO)
