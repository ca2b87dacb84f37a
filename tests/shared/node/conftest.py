"""Fixtures for tests of nodes."""

import pytest

from shared.node import http_connection
from tests.stopwatch import HANG_SECONDS


@pytest.fixture(autouse=True)
def _no_timer_closes_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only timers that the test sets close connections."""
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 2 * HANG_SECONDS)
    monkeypatch.setattr(http_connection, "STALLED_SECONDS", 2 * HANG_SECONDS)
