"""Fixtures of the tests of nodes."""

import pytest

from shared.node import http_connection
from tests.stopwatch import HANG_SECONDS


@pytest.fixture(autouse=True)
def _no_timer_closes_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test waits for the end of a connection, no timer ends it but one that the test sets."""
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 2 * HANG_SECONDS)
    monkeypatch.setattr(http_connection, "STALLED_SECONDS", 2 * HANG_SECONDS)
