"""A healthy stack for tests of outage reports: in the stacks of the other folders, something is always missing."""

from pathlib import Path

import pytest

from tests import stacks
from tests.stacks import RunningStack

_shared = stacks.OfFolders((Path(__file__).parent,), INFERENCE_BACKEND="echo")


@pytest.fixture
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return _shared.get(pytestconfig)


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    _shared.leave(nextitem)
