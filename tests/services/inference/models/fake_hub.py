"""A hub and a registry on loopback: documents and files by path, with tokens and faults that a test sets."""

import hashlib
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PIECE_BYTES = 1 << 20


@dataclass
class FakeHub:
    #: Path (without its query) -> body.
    bodies: dict[str, bytes] = field(default_factory=dict)
    #: Path -> statuses to answer with first, one by one.
    statuses: dict[str, list[int]] = field(default_factory=dict)
    #: Beginning of a path -> the authorization that it requires; a token server is at /token.
    tokens: dict[str, str] = field(default_factory=dict)
    #: The challenge that is sent with 401.
    challenge: str | None = None
    #: Beginning of a path -> the server that it redirects to.
    elsewhere: dict[str, str] = field(default_factory=dict)
    #: Path -> where to cut the connection once.
    cuts: dict[str, int] = field(default_factory=dict)
    #: Path -> how much to send before ``gate`` is set.
    pauses: dict[str, int] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)
    #: In bytes per second, of each answer.
    rate: float | None = None
    #: Called after a cut.
    after_cut: Callable[[], None] = lambda: None
    url: str = ""
    #: Paths and headers of all requests.
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def add_repository(self, name: str, files: dict[str, bytes], sha: str = "a" * 40, **about: object) -> None:
        """List these files like the hub, with further fields, and serve them."""
        listed = [
            {"rfilename": path, "size": len(body), "lfs": {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 1}}
            for path, body in files.items()
        ]
        self.bodies[f"/api/models/{name}"] = json.dumps({"sha": sha, "siblings": [{"rfilename": "README.md"}, *listed], **about}).encode()
        for path, body in files.items():
            self.bodies[f"/{name}/resolve/{sha}/{path}"] = body

    def add_manifest(self, name: str, tag: str, layers: list[dict[str, Any]], blobs: list[bytes]) -> str:
        """Serve a manifest with these layers, and return its digest. Digests and sizes come from the blobs, unless set."""
        digests = [f"sha256:{hashlib.sha256(blob).hexdigest()}" for blob in blobs]
        full = [{"digest": digest, "size": len(blob), **layer} for digest, blob, layer in zip(digests, blobs, layers, strict=True)]
        manifest = json.dumps({"schemaVersion": 2, "layers": full}).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        for reference in (tag, digest):
            self.bodies[f"/v2/{name}/manifests/{reference}"] = manifest
        for one, blob in zip(digests, blobs, strict=True):
            self.bodies[f"/v2/{name}/blobs/{one}"] = blob
        return digest

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, headers = urllib.parse.unquote(handler.path.partition("?")[0]), dict(handler.headers)
        self.asked.append((handler.path, headers))
        wanted = next((token for start, token in self.tokens.items() if path.startswith(start)), None)
        target = next((url + path for start, url in self.elsewhere.items() if path.startswith(start)), None)
        if wanted is not None and headers.get("Authorization") != wanted:
            self._send(handler, 401, b"", {} if self.challenge is None else {"WWW-Authenticate": self.challenge})
        elif self.statuses.get(path):
            self._send(handler, self.statuses[path].pop(0), b"")
        elif target is not None:
            self._send(handler, 307, b"", {"Location": target})
        elif (body := self.bodies.get(path)) is None:
            self._send(handler, 404, b"")
        else:
            self._send_file(handler, path, body, headers)

    def _send_file(self, handler: BaseHTTPRequestHandler, path: str, body: bytes, headers: dict[str, str]) -> None:
        first = int(headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        end = self.cuts.pop(path, len(body))
        told = {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"} if first else {}
        handler.close_connection = end < len(body)
        pause = max(first, self.pauses.get(path, end))
        self._send(handler, 206 if first else 200, body[first:pause], {"Content-Length": str(len(body) - first), "ETag": '"x"', **told})
        if pause < end:
            self.gate.wait(60)
            handler.wfile.write(body[pause:end])
        if handler.close_connection:
            self.after_cut()

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            handler.send_header(name, value)
        handler.end_headers()
        began = time.monotonic()
        for start in range(0, len(body), PIECE_BYTES):
            handler.wfile.write(memoryview(body)[start : start + PIECE_BYTES])
            if self.rate is not None:
                time.sleep(max(0.0, began + start / self.rate - time.monotonic()))


@contextmanager
def serving() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            try:
                hub.answer(self)
            except ConnectionError:
                self.close_connection = True

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the signature of http.server
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
