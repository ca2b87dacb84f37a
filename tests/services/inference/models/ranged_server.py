"""An HTTP server on loopback that serves one file by ranges, with faults that a test sets."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests import gguf_files


def model_bytes(size: int = 0) -> bytes:
    """Return a GGUF file of at least this size; bytes after its header are allowed."""
    pairs = {"general.architecture": gguf_files.text("llama"), "llama.context_length": gguf_files.single("u32", 64)}
    header = gguf_files.joined(gguf_files.file(pairs, []))
    more = max(0, size - len(header))
    return header + (bytes(range(251)) * (more // 251 + 1))[:more]


@dataclass
class RangedServer:
    body: bytes
    etag: str | None = '"one"'
    #: Statuses to answer the first requests with.
    statuses: list[int] = field(default_factory=list)
    #: Where to cut each response, counted from the start of the file.
    cuts: list[int] = field(default_factory=list)
    #: The file and its ETag after each cut.
    after_cut: list[tuple[bytes, str]] = field(default_factory=list)
    #: Send only the head, and keep the connection open until this is set.
    stalled: threading.Event | None = None
    #: Hold the body until this is set.
    gate: threading.Event = field(default_factory=threading.Event)
    #: How much of the file to send before the gate is set.
    pause_at: int | None = None
    redirect: str | None = None
    url: str = ""
    #: The headers of all requests.
    asked: list[dict[str, str]] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.asked]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = dict(handler.headers)
        self.asked.append(headers)
        if self.redirect is not None:
            self._head(handler, 302, {"Location": self.redirect, "Content-Length": "0"})
        elif self.statuses:
            self._head(handler, self.statuses.pop(0), {"Content-Length": "0"})
        elif self.etag is not None and headers.get("If-None-Match") == self.etag:
            self._head(handler, 304, {})
        else:
            self._send(handler, headers)

    def _send(self, handler: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
        body, first = self.body, 0
        if (wanted := headers.get("Range")) and headers.get("If-Range", self.etag) == self.etag:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
        told = {"Content-Length": str(len(body) - first)} | ({} if self.etag is None else {"ETag": self.etag})
        if first:
            told["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        self._head(handler, 206 if first else 200, told)
        if self.stalled is not None:
            self.stalled.wait(60)
            return
        if self.pause_at is not None and first < self.pause_at:
            handler.wfile.write(body[first : self.pause_at])
            self.sent_bytes += self.pause_at - first
            first = self.pause_at
        self.gate.wait(600)
        end = self.cuts.pop(0) if self.cuts else len(body)
        handler.wfile.write(body[first:end])
        self.sent_bytes += end - first
        if end < len(body):
            handler.close_connection = True
            if self.after_cut:
                self.body, self.etag = self.after_cut.pop(0)

    def _head(self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()


@contextmanager
def serving(body: bytes, **faults: object) -> Iterator[RangedServer]:
    site = RangedServer(body, **faults)  # type: ignore[arg-type]  # the fields
    site.gate.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                site.answer(self)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the signature of http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site.url = f"http://127.0.0.1:{server.server_port}/some-model.gguf"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        site.gate.set()
        if site.stalled is not None:
            site.stalled.set()
        server.shutdown()
        thread.join()
        server.server_close()
