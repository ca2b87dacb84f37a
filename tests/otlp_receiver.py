"""Receives traces and logs as a collector does: OTLP in JSON over HTTP."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Received:
    """A span and the service that sent it."""

    service: str
    span: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.span["name"])

    @property
    def failure(self) -> str:
        return str(self.span.get("status", {}).get("message", ""))

    def attribute(self, name: str) -> Any:
        return next((next(iter(each["value"].values())) for each in self.span["attributes"] if each["key"] == name), None)


class Receiver:
    """Everything received, in order of arrival."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        #: (service, log record)
        self.lines: list[tuple[str, dict[str, Any]]] = []
        #: The request bodies as received.
        self.bodies: list[bytes] = []
        #: Path -> JSON to respond with there.
        self.answers: dict[str, bytes] = {}

    def take(self, path: str, body: bytes) -> bool:
        self.bodies.append(body)
        if path == "/v1/traces":
            self._take_spans(body)
        elif path == "/v1/logs":
            self._take_lines(body)
        return path in ("/v1/traces", "/v1/logs")

    def _take_lines(self, body: bytes) -> None:
        for resource in json.loads(body)["resourceLogs"]:
            named = {each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]}
            for scope in resource["scopeLogs"]:
                self.lines += [(named["service.name"], record) for record in scope["logRecords"]]

    def _take_spans(self, body: bytes) -> None:
        for resource in json.loads(body)["resourceSpans"]:
            named = {each["key"]: each["value"]["stringValue"] for each in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                self.spans += [Received(named["service.name"], span) for span in scope["spans"]]

    def trace(self, trace_id: str) -> list[Received]:
        return [one for one in self.spans if one.span["traceId"] == trace_id]


@contextmanager
def receiving(port: int) -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200 if receiver.take(self.path, body) else 404)
            answer = receiver.answers.get(self.path, b"{}")
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_what: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
