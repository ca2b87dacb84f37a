"""What is written to the log while a test runs."""

from collections.abc import Mapping

import pytest

from shared.telemetry import logs


class Lines:
    """Events with their fields, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lines: list[tuple[str, str]] = []
        monkeypatch.setattr(logs, "_write", self._take)

    def of(self, event: str) -> list[str]:
        """The fields of each of them, as a text."""
        return [fields for written, fields in self._lines if written == event]

    def _take(self, _level: int, event: str, fields: Mapping[str, object]) -> None:
        self._lines.append((event, str(dict(fields))))
