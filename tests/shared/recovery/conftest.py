"""Databases with the recovery log of each service that has one."""

import pytest


@pytest.fixture(scope="session", params=["auth", "gateway"])
def tables_of(request: pytest.FixtureRequest) -> str:
    return str(request.param)
