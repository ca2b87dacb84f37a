"""How a log line is made: structlog's chain, and the stdlib handler that brings the lines of libraries into it."""

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from shared import context
from shared.telemetry import log_buffer, redaction

_Line = MutableMapping[str, object]

#: These come first, in this order, on every line.
_FIRST = ("ts", "level", "service", "event", "node", "request_id", "trace_id")

#: A field of lines that stay in this log: nobody who collects the logs of the mesh gets them.
ONLY_HERE = "_only_here"

#: Libraries that log every request, start and stop at INFO; the service's own lines and metrics say it better.
_TALKATIVE = ("uvicorn.access", "uvicorn.error", "httpx", "httpcore")


@dataclass(frozen=True, slots=True)
class LogOrigin:
    """What a line says of where it comes from, unless it says so itself."""

    service: str
    node: str


def start(origin: LogOrigin, level: int, layout: str) -> Callable[[int, str, Mapping[str, object]], None]:
    """Route stdlib logging and our own lines to stdout; returns the function that writes one line of ours."""

    def placed(_logger: object, _method: str, line: _Line) -> _Line:
        return _place(line, origin)

    chain = (
        structlog.stdlib.add_log_level,
        structlog.processors.format_exc_info,
        placed,
        _redact,
    )
    last = structlog.dev.ConsoleRenderer(timestamp_key="ts", colors=sys.stdout.isatty()) if layout == "text" else _to_json
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=chain, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _keep, last]
    )
    _route_stdlib(formatter, level)
    ours = structlog.wrap_logger(
        logging.getLogger("aimesh"),
        processors=[*chain, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )

    def write(level: int, event: str, fields: Mapping[str, object]) -> None:
        ours.log(level, event, **fields)

    return write


def _route_stdlib(formatter: logging.Formatter, level: int) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The log is UTF-8 whatever the locale, and a lone surrogate becomes what is a valid escape in JSON.
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


def _place(line: _Line, origin: LogOrigin) -> _Line:
    """Add when, where and for which request, and put what a reader looks for first."""
    line["ts"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line.setdefault("service", origin.service)
    if origin.node:
        line.setdefault("node", origin.node)
    request = context.current.get()
    if request is not None:
        line.setdefault("request_id", str(request.request_id))
        line.setdefault("trace_id", request.traceparent[3:35])
    first = {name: line.pop(name) for name in _FIRST if name in line}
    return {**first, **line}


def _redact(_logger: object, _method: str, line: _Line) -> _Line:
    # What begins with an underscore is structlog's own and is not written.
    own = {name: value for name, value in line.items() if name.startswith("_")}
    shown = redaction.fields({name: value for name, value in line.items() if not name.startswith("_")})
    return {**shown, **own}


def _keep(_logger: object, _method: str, line: _Line) -> _Line:
    if not line.pop(ONLY_HERE, False):
        log_buffer.add(json.dumps(line, default=str))
    return line


def _to_json(_logger: object, _method: str, line: _Line) -> str:
    return json.dumps(line, default=str, ensure_ascii=False)
