from pathlib import Path

import pytest

from tests import stacks
from tests.stacks import RunningStack

_shared = stacks.OfFolders((Path(__file__).parent,))


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)
