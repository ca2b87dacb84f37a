"""Users on the stack that these tests share with those of tests/integration."""

from collections.abc import AsyncIterator

import pytest

from shared.types import Tier
from tests import echo_stack, people
from tests.people import ApiClient, Person
from tests.stacks import RunningStack


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return echo_stack.shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    echo_stack.shared.leave(nextitem)


@pytest.fixture
async def api_client(stack: RunningStack) -> AsyncIterator[ApiClient]:
    async with people.api_client(stack) as opened:
        yield opened


@pytest.fixture
async def ann(api_client: ApiClient) -> Person:
    """A new user, with enough quota for every test's requests."""
    return await api_client.register("ann", Tier.PRO)
