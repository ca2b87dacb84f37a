"""Write the log: one JSON object per line on stdout, for our own events and those of libraries.

It is cheap to import and silent until ``configure`` is called, so programs that do not log (`aicli`) pay nothing. Log an event name and
fields when a decision is committed, and never prompts, keys or tokens; ``redaction`` masks those that slip through.
"""

import logging
from collections.abc import Callable, Mapping

_Write = Callable[[int, str, Mapping[str, object]], None]

#: The writer. Module state, because a process has one log.
_write: _Write | None = None


class Logger:
    """Writes events; ``bind`` adds fields to all of them. Never raises, and blocks only while writing to stdout."""

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
        """Log an error with the current traceback in the field ``exception``."""
        self._log(logging.ERROR, event, {"exc_info": True, **fields})

    def _log(self, level: int, event: str, fields: Mapping[str, object]) -> None:
        if _write is not None:
            _write(level, event, {**self._fields, **fields})


def get(**fields: object) -> Logger:
    """Return a logger that adds ``fields`` to each line. Can be called at import, before ``configure``."""
    return Logger(fields)


def configure(service: str, level: str = "info", *, format: str = "json", node: str = "") -> None:  # noqa: A002
    """Start logging to stdout, including uvicorn and other libraries. Safe to call again.

    ``level`` is debug, info, warning or error, ``format`` json or text; NodeSettings validates them. ``service`` and ``node`` are the
    default fields of each line. Run uvicorn with ``log_config=None``.
    """
    from shared.telemetry import log_processors  # noqa: PLC0415 - structlog takes 0.1 s to import

    global _write  # noqa: PLW0603
    _write = log_processors.start(service, node, logging.getLevelNamesMapping()[level.upper()], format)


def silence() -> None:
    """Undo ``configure``, for tests."""
    global _write  # noqa: PLW0603
    _write = None
