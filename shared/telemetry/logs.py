"""The log: one JSON object per line on stdout, for this process's own events and for those of its libraries.

Cheap to import, and silent until ``configure`` was called, so that a program which does not log (`aicli`) pays nothing.
A log line is written when a decision is committed: an event name in words, and fields. Never a prompt, key or token; what
slips through is masked (``redaction``).
"""

import logging
from collections.abc import Callable, Mapping

_Write = Callable[[int, str, Mapping[str, object]], None]

#: Where lines go. A process has one log, so this is the one state that is not owned by an object.
_write: _Write | None = None


class Logger:
    """Writes events. ``bind`` adds fields to all of them. Never blocks beyond the write to stdout, never raises."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Mapping[str, object]) -> None:
        self._fields = fields

    def bind(self, **fields: object) -> "Logger":
        return Logger({**self._fields, **fields})

    def debug(self, event: str, **fields: object) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled, as the one field ``exception``."""
        self._log(logging.ERROR, event, {"exc_info": True, **fields})

    def _log(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        if _write is not None:
            _write(level, event, {**self._fields, **fields})


def get(**fields: object) -> Logger:
    """A logger whose lines carry ``fields``; may be made at import, before ``configure``."""
    return Logger(fields)


def configure(service: str, level: str = "info", *, format: str = "json", node: str = "") -> None:  # noqa: A002
    """Log to stdout from now on: this process's events, and what uvicorn and other libraries log. Safe to call again.

    ``level`` is debug, info, warning or error, ``format`` json or text; NodeSettings has checked them.
    ``service`` and ``node`` are the fields of lines that say nothing else; uvicorn must run with ``log_config=None``.
    """
    from shared.telemetry import log_processors  # noqa: PLC0415 - structlog takes 0.1 s to import

    global _write  # noqa: PLW0603 - see above
    _write = log_processors.start(log_processors.LogOrigin(service, node), logging.getLevelNamesMapping()[level.upper()], format)


def silence() -> None:
    """Back to the state before ``configure``, for tests."""
    global _write  # noqa: PLW0603
    _write = None
