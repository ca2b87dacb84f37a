"""One stack for the browser tests, with the echo model for speed; the new user's has all that `make up` makes."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import stacks
from tests.acceptance import chromium
from tests.acceptance.chromium import Browser
from tests.stacks import RunningStack

_shared = stacks.OfFolder(Path(__file__).parent, INFERENCE_BACKEND="echo")


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium.launch() as running:
        yield running
