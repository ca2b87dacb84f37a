"""Databases with the gateway's tables."""

import pytest


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    return "gateway"
