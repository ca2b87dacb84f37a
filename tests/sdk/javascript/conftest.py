"""One stack for all tests of this folder: up with the first of them that needs it, down before the tests of any other folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.types import Tier
from tests import people, stacks
from tests.people import Person
from tests.stacks import RunningStack

#: So that an answer of a thousand words is long enough to be aborted or cut off in its middle.
ECHO_TOKEN_MS = "5"

_shared = stacks.OfFolder(Path(__file__).parent, AIMESH_ECHO="1", ECHO_TOKEN_MS=ECHO_TOKEN_MS)


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)


@pytest.fixture
async def ann(stack: RunningStack) -> AsyncIterator[Person]:
    """Somebody new."""
    async with people.api_client(stack) as api_client:
        yield await api_client.register("ann", Tier.PRO)
