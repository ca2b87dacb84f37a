"""Databases with the tables of the metrics service."""

import pytest


@pytest.fixture(scope="session")
def tables_of() -> str | None:
    return "metrics"
