"""Logging is global to the process, so restore it after each test."""

import logging
from collections.abc import Iterator

import pytest

from shared.telemetry import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    logs.silence()
    root.handlers, root.level = handlers, level
    logging.captureWarnings(capture=False)
