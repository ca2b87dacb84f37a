"""The log lines that a test writes."""

from collections.abc import Mapping

import pytest

from shared.telemetry import logs


class Lines:
    """Log events with their fields, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lines: list[tuple[str, str]] = []
        monkeypatch.setattr(logs, "_write", self._take)

    def of(self, event: str) -> list[str]:
        """Return the fields of each event as text."""
        return [fields for written, fields in self._lines if written == event]

    def _take(self, _level: int, event: str, fields: Mapping[str, object]) -> None:
        self._lines.append((event, str(dict(fields))))
