"""Databases with the tables of metrics."""

import pytest


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    return "metrics"
