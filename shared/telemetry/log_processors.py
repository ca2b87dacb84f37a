"""Format log lines: structlog's processor chain, and the stdlib handler that feeds library logs into it."""

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from shared import context
from shared.telemetry import log_buffer, redaction

_Line = MutableMapping[str, object]

#: These come first, in this order, on every line.
_FIRST = ("ts", "level", "service", "event", "node", "request_id", "trace_id")

#: A field that keeps a line out of the log buffer, so that the log collector never gets it.
ONLY_HERE = "_only_here"

#: Libraries that log every request at INFO, which our own metrics already cover.
_TALKATIVE = ("uvicorn.access", "uvicorn.error", "httpx", "httpcore")


def start(service: str, node: str, level: int, layout: str) -> Callable[[int, str, Mapping[str, object]], None]:
    """Route stdlib logging and our own lines to stdout. Returns the function that writes one of our lines. ``service`` and ``node`` are the
    defaults of a line."""

    def placed(_logger: object, _method: str, line: _Line) -> _Line:
        return _place(line, service, node)

    chain = (
        structlog.stdlib.add_log_level,
        structlog.processors.format_exc_info,
        placed,
        _redact,
    )
    # On Windows, structlog refuses colors without colorama, which workers of the role `front` don't have.
    has_colors = sys.stdout.isatty() and sys.platform != "win32"
    last = structlog.dev.ConsoleRenderer(timestamp_key="ts", colors=has_colors) if layout == "text" else _to_json
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=chain, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _keep, last]
    )
    _route_stdlib(formatter, level)
    # Not by the standard library, which takes as long for a line as all the rest. Without `bind`, it would be bound for each line.
    ours = structlog.wrap_logger(
        structlog.WriteLogger(sys.stdout),
        processors=[*chain, _keep, last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    ).bind()

    def write(level: int, event: str, fields: Mapping[str, object]) -> None:
        # Its reader may have closed the pipe.
        with suppress(OSError, ValueError):
            ours.log(level, event, **fields)

    return write


def _route_stdlib(formatter: logging.Formatter, level: int) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Always UTF-8, whatever the locale. A lone surrogate becomes an escape that is valid in JSON.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _place(line: _Line, service: str, node: str) -> _Line:
    """Add the time, origin and request, and put the most useful fields first."""
    line["ts"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line.setdefault("service", service)
    if node:
        line.setdefault("node", node)
    request = context.current.get()
    if request is not None:
        line.setdefault("request_id", str(request.request_id))
        line.setdefault("trace_id", request.traceparent[3:35])
    first = {name: line.pop(name) for name in _FIRST if name in line}
    return {**first, **line}


def _redact(_logger: object, _method: str, line: _Line) -> _Line:
    # Names that begin with an underscore are internal to structlog and never written.
    own = {name: value for name, value in line.items() if name.startswith("_")}
    shown = redaction.fields({name: value for name, value in line.items() if not name.startswith("_")})
    return {**shown, **own}


def _keep(_logger: object, _method: str, line: _Line) -> _Line:
    if not line.pop(ONLY_HERE, False):
        log_buffer.add(json.dumps(line, default=str))
    return line


def _to_json(_logger: object, _method: str, line: _Line) -> str:
    return json.dumps(line, default=str, ensure_ascii=False)
