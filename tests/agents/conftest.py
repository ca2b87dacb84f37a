"""The stack that these tests share with tests/integration."""

import pytest

from tests import echo_stack
from tests.stacks import RunningStack


@pytest.fixture(scope="module")
def stack(pytestconfig: pytest.Config) -> RunningStack:
    return echo_stack.shared.get(pytestconfig)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    # After the fixtures of modules, whose worker leaves the running stack.
    echo_stack.shared.leave(nextitem)
